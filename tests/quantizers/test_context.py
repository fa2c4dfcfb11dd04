"""The entropy model of integers: exact on every machine, and causal."""

from functools import partial

import chex
import integer_context
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vq_jax.quantizers.context import (
    LARGEST,
    STAGES,
    Context,
    bits,
    check_exact,
    places,
    seen,
)

MODULE = Context(dim=12, first=3, width=16)


@pytest.fixture(scope="module")
def params():
    y = jnp.zeros((1, 4, 4, 12))
    params = MODULE.init(jax.random.key(0), y, jnp.zeros(1))["params"]
    keys = iter(jax.random.split(jax.random.key(1), 100))
    # Large weights and biases: some are clipped, and hidden layers saturate.
    return jax.tree.map(lambda a: 3 * a + 0.2 * jax.random.normal(next(keys), a.shape), params)


def integers(seed=0, size=(2, 7, 6)):
    rng = np.random.default_rng(seed)
    y = np.rint(rng.laplace(0, 3, (*size, 12)))
    y[0, 0, 0] = [LARGEST, -LARGEST] * 6
    return y.astype(np.float32), np.array([-7.0, 6.0], np.float32)


@pytest.mark.parametrize("compiled", [False, True])
def test_predictions_equal_those_in_64_bit_integers(params, compiled):
    y, quality = integers()
    apply = jax.jit(MODULE.apply) if compiled else MODULE.apply
    found = apply({"params": params}, y, quality)
    wanted = integer_context.predict(params, y.astype(np.int64), quality.astype(np.int64), 3)
    for a, b in zip(found, wanted, strict=True):
        chex.assert_trees_all_equal(np.asarray(a, np.int64), b)
    assert len(np.unique(wanted[1])) > 10  # the scales are not all at a limit


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 6)])
def test_stages_code_every_code_once(size):
    first = sum(places(*size, stage).astype(int) for stage in range(3))
    rest = sum(places(*size, stage).astype(int) for stage in range(3, STAGES))
    chex.assert_trees_all_equal(first, np.ones(size, int))
    chex.assert_trees_all_equal(rest, np.ones(size, int))
    assert not (seen(*size, 1) & places(*size, 1)).any()
    assert not (seen(*size, 2) & places(*size, 2)).any()


def test_a_code_depends_on_codes_of_earlier_stages_only(params):
    y, quality = integers()
    predict = jax.jit(partial(MODULE.apply, {"params": params}))
    before = [np.asarray(a) for a in predict(y, quality)]
    for stage in range(STAGES):
        here = places(*y.shape[1:3], stage)
        dims = slice(0, 3) if stage < 3 else slice(3, None)
        changed = y.copy()
        changed[:, here, dims] += 5
        after = [np.asarray(a) for a in predict(changed, quality)]
        for earlier in range(stage + 1):
            at, of = places(*y.shape[1:3], earlier), slice(0, 3) if earlier < 3 else slice(3, None)
            for a, b in zip(before, after, strict=True):
                chex.assert_trees_all_equal(a[:, at, of], b[:, at, of])
        if stage + 1 < STAGES:
            assert any((a != b).any() for a, b in zip(before, after, strict=True))


def test_one_stage_alone_equals_all_together(params):
    y, quality = integers()
    everything = MODULE.apply({"params": params}, y, quality)
    for stage in range(STAGES):
        part = MODULE.apply({"params": params}, stage, y, quality, method="stage")
        here, dims = places(*y.shape[1:3], stage), slice(0, 3) if stage < 3 else slice(3, None)
        for a, b in zip(part, everything, strict=True):
            chex.assert_trees_all_equal(a[:, here], b[:, here][..., dims])


def test_probabilities_of_all_integers_sum_to_one():
    y = jnp.arange(-40.0, 41.0)
    for scale, mean in ((0, 3), (10, -5), (20, 7)):
        total = jnp.exp2(-bits(y, jnp.float32(mean), jnp.float32(scale))).sum()
        assert float(total) == pytest.approx(1, abs=1e-4)


def test_bits_have_gradients_for_the_mean_and_the_scale():
    to_mean, to_scale = jax.grad(bits, (1, 2))(-200.0, 4.0, 16.0)
    assert (to_mean, to_scale) == (0.0, 0.0)  # beyond 20 bits, the charge is constant
    assert float(jax.grad(bits, 1)(3.0, 4.0, 16.0)) < 0 < float(jax.grad(bits, 1)(-3.0, 4.0, 16.0))


def test_weights_that_could_leave_exact_floats_are_refused(params):
    check_exact(params)
    large = jax.tree.map(lambda a: a, params)
    large["stages_4"]["conv_1"] = {
        "kernel": jnp.ones((3, 3, 16 * 64, 2)),
        "bias": jnp.zeros(2),
    }
    with pytest.raises(ValueError, match="layer conv_1"):
        check_exact(large)

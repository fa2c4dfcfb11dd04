"""Priors: which tokens see which, cached against uncached logits, and the layers in a loop."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vq_jax.models import PRIORS
from vq_jax.models.transformer import unstack

KEY = jax.random.key(0)
K, GRID, CLASSES = 11, (3, 4), 3
STYLES = {
    "rope": {"position": "rope", "norm": "rms", "activation": "swiglu"},
    "learned": {"position": "learned", "norm": "layer", "activation": "gelu"},
    "bert": {"position": "learned", "norm": "bert", "activation": "gelu_erf"},
}


def make(name, books=1, condition=(), style="rope", **fields):
    """Returns a prior, its variables, codes, labels and the codes of the condition or None."""
    prior = PRIORS[name](
        num_codes=K, grid=GRID, books=books, classes=CLASSES, condition=condition,
        dtype=jnp.float32, layers=2, width=32, heads=2, **STYLES[style], **fields,
    )  # fmt: skip
    codes = jax.random.randint(KEY, (2, prior.length), 0, K)
    labels = jnp.array([1, CLASSES])
    condition_codes = None
    if condition:
        condition_codes = jax.random.randint(jax.random.key(1), (2, prior.prefix_length - 1), 0, K)
    variables = prior.init(jax.random.key(2), codes, labels, condition_codes)
    # Kernels larger than the initial ones, so that every dependence exceeds the tolerances.
    variables = jax.tree.map(lambda x: x * 5 if x.ndim > 1 else x, variables)
    return prior, variables, codes, labels, condition_codes


def orders(count=2):
    """Returns random orders of the positions, [count, positions]."""
    positions = GRID[0] * GRID[1]
    return jnp.stack([jax.random.permutation(jax.random.key(i), positions) for i in range(count)])


def dependence(prior, variables, codes, labels, order=None):
    """Computes whether the logits of token n depend on token m, bool [N, N], from gradients."""

    def logits(offsets_ND):
        # Adds an offset to the embedding of each token.
        def add(next_fun, args, kwargs, context):
            y = next_fun(*args, **kwargs)
            visited = offsets_ND if order is None else offsets_ND[order[0]]
            return y + visited[None] if context.method_name == "_tokens" else y

        with nn.intercept_methods(add):
            return prior.apply(variables, codes[:1], labels[:1], None, order)[0].sum(-1)

    zeros = jnp.zeros((prior.length, prior.width))
    jacobian = jax.jit(jax.jacobian(lambda x: jnp.sin(logits(x))))(zeros)
    return np.asarray(jnp.abs(jacobian).sum(-1) > 0)


@pytest.mark.parametrize("style", STYLES)
def test_causal_prior_sees_exactly_the_tokens_before(style):
    prior, variables, codes, labels, _ = make("causal", style=style)
    depends = dependence(prior, variables, codes, labels)
    np.testing.assert_array_equal(depends, np.tril(np.ones_like(depends), -1))


def test_random_order_prior_sees_exactly_the_tokens_visited_before():
    prior, variables, codes, labels, _ = make("random_order")
    order = orders(1)
    depends = dependence(prior, variables, codes, labels, order)
    rank = np.argsort(np.asarray(order[0]))
    np.testing.assert_array_equal(depends, rank[None, :] < rank[:, None])


def test_masked_prior_sees_all_tokens():
    prior, variables, codes, labels, _ = make("masked")
    assert dependence(prior, variables, codes, labels).all()


def test_masked_tokens_have_no_effect():
    prior, variables, codes, labels, _ = make("masked")
    masked = codes.at[:, 3].set(-1)
    other = codes.at[:, 3].set((codes[:, 3] + 1) % K)
    apply = jax.jit(prior.apply)
    chex.assert_trees_all_equal(
        apply(variables, masked, labels), apply(variables, other.at[:, 3].set(-1), labels)
    )
    assert jnp.abs(apply(variables, codes, labels) - apply(variables, other, labels)).max() > 1e-3


@pytest.mark.parametrize("name", ["causal", "random_order"])
@pytest.mark.parametrize(
    "style,books,condition,scan",
    [("rope", 1, (), False), ("learned", 2, (2, 2), False), ("rope", 3, (2, 2), True)],
)
def test_cached_logits_equal_uncached(name, style, books, condition, scan):
    prior, variables, codes, labels, condition_codes = make(
        name, books, condition, style, scan=scan
    )
    order = orders() if prior.target_aware else None
    expected = jax.jit(prior.apply)(variables, codes, labels, condition_codes, order)
    single, params = unstack(prior, variables["params"])
    visited = jnp.tile(jnp.arange(12), (2, 1)) if order is None else order
    row = jnp.arange(2)

    @jax.jit
    def step(n, code, position, following, cache):
        return single.apply({"params": params}, code, n, position, following, cache, method="step")

    cache = single.apply({"params": params}, 2, method="empty_cache")
    logits, cache = single.apply(
        {"params": params}, labels, condition_codes, visited[:, 0], cache, method="begin"
    )
    for n in range(prior.length):
        index = visited[:, n // books] * books + n % books
        chex.assert_trees_all_close(logits, expected[row, index], atol=2e-5, rtol=1e-4)
        if n + 1 < prior.length:
            following = visited[:, (n + 1) // books]
            logits, cache = step(n, codes[row, index], visited[:, n // books], following, cache)


@pytest.mark.parametrize("name", [name for name in PRIORS if name != "next_scale"])
def test_scan_and_remat_do_not_change_loss_and_gradients(name):
    prior, variables, codes, labels, _ = make(name, scan=True, remat=True)
    single, params = unstack(prior, variables["params"])
    plain = single.clone(remat=False)

    def loss(module, params):
        return jnp.square(module.apply({"params": params}, codes, labels)).mean()

    loss = jax.jit(jax.value_and_grad(loss, argnums=1), static_argnums=0)
    value, grads = loss(prior, variables["params"])
    expected, expected_grads = loss(plain, params)
    chex.assert_trees_all_close(value, expected, rtol=1e-5)
    chex.assert_trees_all_close(unstack(prior, grads)[1], expected_grads, rtol=1e-4, atol=1e-6)


def test_label_and_condition_have_an_effect():
    prior, variables, codes, _, condition_codes = make("masked", condition=(2, 2))
    apply = jax.jit(prior.apply)
    logits = apply(variables, codes, jnp.array([0, CLASSES]), condition_codes)
    other = apply(variables, codes, jnp.array([1, CLASSES]), condition_codes)
    assert jnp.abs(logits - other)[0].max() > 1e-3
    chex.assert_trees_all_equal(logits[1], other[1])
    other = apply(variables, codes, jnp.array([0, CLASSES]), (condition_codes + 1) % K)
    assert jnp.abs(logits - other).max() > 1e-3
    with pytest.raises(ValueError, match="condition"):
        prior.apply(variables, codes, jnp.array([0, 0]))


def test_bfloat16_prior_has_float32_params_and_logits():
    prior, variables, codes, labels, _ = make("causal")
    bfloat16_prior = prior.clone(dtype=jnp.bfloat16)
    logits = jax.jit(bfloat16_prior.apply)(variables, codes, labels)
    assert logits.dtype == jnp.float32
    chex.assert_trees_all_close(logits, prior.apply(variables, codes, labels), atol=0.1, rtol=0.1)
    params = bfloat16_prior.init(KEY, codes, labels)
    chex.assert_trees_all_equal_dtypes(params, variables)


def test_invalid_fields_are_reported():
    with pytest.raises(ValueError, match="prior.position is 'ropes'"):
        PRIORS["causal"](num_codes=K, grid=GRID, books=1, classes=0, condition=(), dtype=jnp.float32,
                         position="ropes")  # fmt: skip
    with pytest.raises(ValueError, match="multiple of"):
        PRIORS["causal"](num_codes=K, grid=GRID, books=1, classes=0, condition=(), dtype=jnp.float32,
                         width=36, heads=4)  # fmt: skip

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from vq_jax.config import base
from vq_jax.errors import UserError
from vq_jax.training.optim import make_optimizer, make_schedule


def section(**changes):
    config = base("vqvae").optim
    config.update({"lr": 0.1} | changes)
    return config


def test_cosine_schedule_warms_up_and_ends_at_lr_end():
    schedule = make_schedule(section(schedule="cosine", warmup_steps=10, lr_end=0.01), 110)
    values = [float(schedule(i)) for i in range(111)]
    assert values[0] == 0 and values[5] == pytest.approx(0.05) and values[10] == pytest.approx(0.1)
    assert values[60] == pytest.approx(0.055) and values[110] == pytest.approx(0.01)
    assert values[10:] == sorted(values[10:], reverse=True)


def test_constant_schedule_does_not_change():
    schedule = make_schedule(section(), 100)
    assert float(schedule(0)) == float(schedule(99)) == pytest.approx(0.1)


def test_weight_decay_applies_only_to_kernels():
    params = {
        "conv": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
        "quantizer": {"codebook": jnp.ones((4, 2))},
    }
    tx = make_optimizer(section(weight_decay=0.5), 10)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    chex.assert_trees_all_close(updates["conv"]["kernel"], jnp.full((2, 2), -0.05), rtol=1e-5)
    chex.assert_trees_all_equal(updates["conv"]["bias"], jnp.zeros(2))
    chex.assert_trees_all_equal(updates["quantizer"]["codebook"], jnp.zeros((4, 2)))


def test_accumulated_batches_equal_one_large_batch(rng):
    params = {"w": jnp.ones((3, 2))}
    grads = [{"w": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)} for _ in range(4)]

    def run(tx, batches):
        state, p = tx.init(params), params
        for g in batches:
            updates, state = tx.update(g, state, p)
            p = optax.apply_updates(p, updates)
        return p

    mean = [jax.tree.map(lambda a, b: (a + b) / 2, *grads[i : i + 2]) for i in (0, 2)]
    chex.assert_trees_all_close(
        run(make_optimizer(section(accumulate=2), 4), grads),
        run(make_optimizer(section(), 2), mean),
        rtol=1e-5,
    )


def test_gradients_are_clipped_by_their_norm():
    params = {"w": jnp.zeros((2,))}
    tx = make_optimizer(section(clip_norm=1.0, b1=0.0), 10)
    _, state = tx.update({"w": jnp.array([30.0, 40.0])}, tx.init(params), params)
    chex.assert_trees_all_close(optax.tree.get(state, "mu")["w"], jnp.array([0.6, 0.8]), rtol=1e-5)


def test_invalid_values_are_rejected():
    with pytest.raises(UserError, match="'constant' or 'cosine'"):
        make_schedule(section(schedule="linear"), 10)
    with pytest.raises(UserError, match="accumulate"):
        make_optimizer(section(accumulate=0), 10)


def test_muon_updates_matrices_and_adamw_the_rest(rng):
    params = {
        "dense": {"kernel": jnp.ones((8, 16)), "bias": jnp.ones(16)},
        "conv": {"kernel": jnp.ones((3, 3, 4, 4))},
        "codes": {"embedding": jnp.ones((5, 8))},
    }
    grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)

    def updates(**changes):
        tx = make_optimizer(section(**changes), 10)
        return tx.update(grads, tx.init(params), params)[0]

    plain, muon = updates(), updates(muon_lr=0.5)
    for path in (("dense", "bias"), ("codes", "embedding")):
        chex.assert_trees_all_equal(muon[path[0]][path[1]], plain[path[0]][path[1]])
    # All singular values of an update are about the learning rate, times sqrt(fan out / fan in).
    values = jnp.linalg.svd(muon["dense"]["kernel"], compute_uv=False) / (0.5 * 2**0.5)
    assert (jnp.abs(values - 1) < 0.4).all()
    # The kernel of a convolution counts as a matrix of its taps and inputs by its outputs.
    values = jnp.linalg.svd(muon["conv"]["kernel"].reshape(36, 4), compute_uv=False) / 0.5
    assert (jnp.abs(values - 1) < 0.4).all()
    decayed = updates(muon_lr=0.5, weight_decay=0.5)["dense"]["kernel"]
    chex.assert_trees_all_close(
        decayed - muon["dense"]["kernel"], jnp.full((8, 16), -0.05), atol=1e-5
    )
    with pytest.raises(UserError, match="muon_lr needs optim.lr"):
        make_optimizer(section(muon_lr=0.1, lr=0.0), 10)

"""A prior's training step, on one device and on four, with replicated and with sharded params."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vq_jax.config import base_prior
from vq_jax.models import PRIORS
from vq_jax.sampling import row_keys
from vq_jax.tasks.train_prior import make_prior_recipe
from vq_jax.training import parallel
from vq_jax.training.prior_steps import (
    draw_masks,
    draw_orders,
    init_prior_state,
    mask_codes,
    prior_step,
)

KEY = jax.random.key(0)


SIDES = (1, 2, 3)  # of the scales, for a next-scale prior


def length_of(name):
    return 14 if name == "next_scale" else 16


def make(name="causal", **changes):
    config = base_prior(name)
    config.codes.update({"num_codes": 16, "grid": (4, 4), "classes": ("a", "b")})
    if name == "next_scale":
        grids = tuple((side, side) for side in SIDES)
        config.codes.update({"grid": (14,), "grids": grids, "latent": 5})
    config.prior.update({"layers": 1, "width": 64, "heads": 4, "dropout": 0.0})
    config.phases.prior = 10
    config.loss.label_smoothing = 0.1
    config.update(changes)
    recipe = make_prior_recipe(config)
    if name == "next_scale":
        rng = np.random.default_rng(1)
        shapes = {"entries": (16, 5), "kernels": (3, 3, 3, 5, 5), "biases": (3, 5)}
        arrays = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
        recipe = dataclasses.replace(recipe, constants={"tokenizer": arrays})
    return recipe, lambda key: init_prior_state(recipe, key, np.arange(32), {})


def batch(rows=8, length=16):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (rows, length)).astype(np.int32)
    return {"codes": codes, "label": rng.integers(0, 2, rows).astype(np.int32)}


@pytest.mark.parametrize("name", PRIORS)
def test_a_step_on_four_devices_equals_that_on_one(name):
    recipe, init = make(name)
    step = partial(prior_step, recipe=recipe)
    examples = batch(length=length_of(name))
    expected, expected_metrics = jax.jit(step)(jax.jit(init)(KEY), examples, KEY)
    for mode, fsdp in (("pmap", False), ("jit", False), ("jit", True)):
        state = parallel.make_state(init, KEY, fsdp=fsdp)
        compiled = parallel.compile_step(step, mode, state)
        sharded = {
            path[-1].key
            for path, leaf in jax.tree_util.tree_leaves_with_path(state.prior.params)
            if not leaf.sharding.is_fully_replicated
        }
        assert ("kernel" in sharded) == fsdp
        found, metrics = compiled(state, parallel.shard_batch(examples, mode), KEY)
        chex.assert_trees_all_close(found.prior.params, expected.prior.params, atol=2e-5)
        chex.assert_trees_all_close(metrics, expected_metrics, rtol=1e-4)
        if fsdp:  # the step keeps the shardings of params, moments and averages
            before = jax.tree.map(lambda x: x.sharding, parallel.make_state(init, KEY, fsdp=True))
            after = jax.tree.map(lambda x: x.sharding, found)
            assert jax.tree.all(
                jax.tree.map(lambda a, b, x: a.is_equivalent_to(b, x.ndim), after, before, found)
            )


def test_the_loss_is_optax_cross_entropy_with_smoothed_labels():
    recipe, init = make(loss={"label_dropout": 0.0, "label_smoothing": 0.1})
    state = jax.jit(init)(KEY)
    examples = batch()
    _, metrics = jax.jit(partial(prior_step, recipe=recipe))(state, examples, KEY)
    logits = recipe.prior.apply(
        {"params": state.prior.params}, examples["codes"], examples["label"]
    )
    targets = optax.smooth_labels(jax.nn.one_hot(examples["codes"], 16), 0.1)
    expected = optax.softmax_cross_entropy(logits, targets).mean()
    chex.assert_trees_all_close(metrics["loss"], expected, rtol=1e-5)
    plain = optax.softmax_cross_entropy_with_integer_labels(logits, examples["codes"]).mean()
    chex.assert_trees_all_close(metrics["bits_per_code"], plain / np.log(2), rtol=1e-5)


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_learns_a_pattern(name):
    recipe, init = make(name, optim={"lr": 3e-3}, phases={"prior": 150})
    state = jax.jit(init)(KEY)
    step = jax.jit(partial(prior_step, recipe=recipe))
    examples = batch(16, length_of(name))
    examples["codes"] = (np.arange(length_of(name))[None] + 8 * examples["label"][:, None]).astype(
        np.int32
    ) % 16
    for _ in range(60):
        state, metrics = step(state, examples, KEY)
    assert metrics["bits_per_code"] < 1.5  # uniform codes have 4 bits


def test_a_step_with_nan_params_is_skipped_and_counted():
    recipe, init = make()
    state = jax.jit(init)(KEY)
    broken = state.replace(prior=state.prior.replace(
        params=state.prior.params | {"books": jnp.full_like(state.prior.params["books"], jnp.nan)}
    ))  # fmt: skip
    after, metrics = jax.jit(partial(prior_step, recipe=recipe))(broken, batch(), KEY)
    assert metrics["skipped"] == 1 and after.step == 1
    chex.assert_trees_all_equal(after.prior, broken.prior)


def test_masks_have_the_sizes_of_the_cosine_schedule():
    masks = draw_masks(row_keys(KEY, 0, 4000), 64)
    counts = np.asarray(masks.sum(1))
    assert counts.min() >= 1 and counts.max() == 64
    # P(share <= s) of cos(pi u / 2) is 1 - arccos(s) * 2 / pi.
    for share in (0.25, 0.5, 0.9):
        expected = 1 - np.arccos(share) * 2 / np.pi
        assert abs((counts <= share * 64).mean() - expected) < 0.03
    assert draw_masks(row_keys(KEY, 0, 500), 64, least=0.5).sum(1).min() == 32
    np.testing.assert_allclose(masks.mean(0), 2 / np.pi, atol=0.03)  # uniform over the positions
    assert [int(mask_codes(KEY, 8, jnp.float32(s)).sum()) for s in (0.0, 0.5, 1.0)] == [1, 4, 8]


def test_a_share_of_the_orders_is_random_and_the_others_ascend():
    orders = np.asarray(draw_orders(row_keys(KEY, 0, 400), 16, 0.3))
    np.testing.assert_array_equal(np.sort(orders, 1), np.tile(np.arange(16), (400, 1)))
    assert abs((orders != np.arange(16)).any(1).mean() - 0.3) < 0.08
    assert (np.asarray(draw_orders(row_keys(KEY, 0, 9), 16, 0.0)) == np.arange(16)).all()

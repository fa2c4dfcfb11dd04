"""Training of rate and distortion: qualities do not depend on devices, and the cost falls."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import make_photo_codec

from vq_jax.tasks.train_tokenizer import make_phases, make_recipe
from vq_jax.training import parallel, steps
from vq_jax.training.steps import init_state, train_step

KEY = jax.random.key(0)
SPEC = jax.ShapeDtypeStruct((32, 32, 3), jnp.float32)


def prepare(optimizer):
    config = make_photo_codec().config
    recipe = dataclasses.replace(make_recipe(config), optimizer=optimizer)
    state = jax.jit(partial(init_state, recipe, spec=SPEC))(KEY)
    return recipe, state, partial(train_step, recipe=recipe, phase=make_phases(config)[0])


@pytest.mark.parametrize("mode", parallel.PARALLEL)
def test_four_devices_equal_one(mode):
    _, state, step = prepare(optax.sgd(1e-3))
    x = jax.random.uniform(jax.random.key(1), (8, *SPEC.shape), minval=-1, maxval=1)
    expected, expected_metrics = jax.jit(step)(state, {"x": x}, KEY)
    many = parallel.make_state(lambda state: state, state)
    compiled = parallel.compile_step(step, mode, many)
    found, metrics = compiled(many, parallel.shard_batch({"x": np.asarray(x)}, mode), KEY)
    chex.assert_trees_all_close(
        jax.device_get(metrics), jax.device_get(expected_metrics), rtol=1e-3, atol=1e-4
    )
    params = [jax.device_get(s.generator.params) for s in (found, expected)]
    chex.assert_trees_all_close(*params, atol=1e-4)


def test_rate_and_distortion_fall_together():
    recipe, state, step = prepare(optax.adam(3e-3))
    rows = np.mgrid[:32, :32].sum(0)[..., None] / 10
    phases = np.random.default_rng(0).uniform(0, 6, (8, 1, 1, 3))
    x = np.float32(np.sin(rows + phases))
    compiled, costs = jax.jit(step), []
    for _ in range(120):
        state, metrics = compiled(state, {"x": x}, KEY)
        reconstruction, rate = metrics["loss_reconstruction"], metrics["loss_rate"]
        costs.append(float(recipe.reconstruction_weight * reconstruction + rate / 64))
    assert np.mean(costs[-10:]) < 0.6 * np.mean(costs[:10])


def test_each_example_has_its_own_quality():
    recipe, state, _ = prepare(optax.sgd(0.0))
    x = jnp.broadcast_to(jax.random.uniform(jax.random.key(1), SPEC.shape), (3, *SPEC.shape))
    variables = {"params": state.generator.params}
    z = recipe.tokenizer.apply(variables, x, jnp.array([0.0, 0.5, 1.0]), method="encode")
    sizes = np.asarray(jnp.abs(z).mean((1, 2, 3)))
    model = recipe.tokenizer.encoder
    step_sizes = np.asarray(model.step(jnp.array([0.0, 0.5, 1.0])))
    chex.assert_trees_all_close(sizes * step_sizes, np.full(3, sizes[0] * step_sizes[0]), rtol=1e-2)
    chex.assert_trees_all_close(
        step_sizes[[0, 2]], np.float32([model.coarsest, model.finest]), rtol=1e-5
    )
    weights = recipe.tokenizer.distortion_weight(jnp.array([0.0, 1.0]))
    chex.assert_trees_all_close(weights, step_sizes[[0, 2]] ** -2, rtol=1e-5)


def test_a_power_above_one_draws_low_qualities_more_often():
    recipe, _, _ = prepare(optax.sgd(0.0))
    key = jax.random.key(0)
    for power in (0.1, 1.0, 2.0):
        skewed = dataclasses.replace(recipe, quality_power=power)
        drawn = np.asarray(steps._draw_quality(skewed, key, 4000, None))
        assert drawn.min() >= 0 and drawn.max() < 1
        np.testing.assert_allclose(drawn.mean(), 1 / (power + 1), atol=0.02)

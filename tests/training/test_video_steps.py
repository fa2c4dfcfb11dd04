"""A training step on clips: four devices give what one does."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from vq_jax.config import base
from vq_jax.tasks.train_tokenizer import make_phases, make_recipe
from vq_jax.training import parallel
from vq_jax.training.steps import init_state, train_step

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def made():
    config = base("causal3d")
    config.data.update(frames=5, resolution=16)
    config.model.update(ch=8, ch_mult=(1, 1), num_res_blocks=1, z_channels=8, patch=2)
    config.model.update(halve_time=(0,), halve_space=(0,), norm="rms", shortcut=True)
    config.quantizer.update(num_codes=16, dim=8, revive_below=0.0)
    config.discriminator.update(ndf=8, n_layers=1, norm="batch")
    config.loss.update(perceptual_weight=1.0, perceptual_frames=2)
    config.phases.adversarial = 4
    recipe = dataclasses.replace(
        make_recipe(config), optimizer=optax.sgd(0.05), disc_optimizer=optax.sgd(0.05)
    )
    spec = jax.ShapeDtypeStruct((5, 16, 16, 3), jnp.float32)
    state = jax.jit(partial(init_state, recipe, spec=spec))(KEY)
    x = jax.random.uniform(jax.random.key(1), (4, *spec.shape), minval=-1, maxval=1)
    step = partial(train_step, recipe=recipe, phase=make_phases(config)[0])
    return state, {"x": x}, step, jax.jit(step)(state, {"x": x}, KEY)


@pytest.mark.parametrize("mode", parallel.PARALLEL)
def test_four_devices_equal_one(made, mode):
    state, batch, step, (expected, expected_metrics) = made
    many = parallel.make_state(lambda state: state, state)
    compiled = parallel.compile_step(step, mode, many)
    found, metrics = compiled(many, parallel.shard_batch(jax.device_get(batch), mode), KEY)
    chex.assert_trees_all_close(
        jax.device_get(metrics), jax.device_get(expected_metrics), rtol=1e-3, atol=1e-4
    )
    for network in ("generator", "discriminator"):
        params = [jax.device_get(getattr(s, network).params) for s in (found, expected)]
        chex.assert_trees_all_close(*params, atol=1e-4)

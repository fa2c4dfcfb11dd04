"""One device, pmap over four and jit over four give the same numbers."""

import dataclasses
import subprocess
import sys
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vq_jax.collectives import pmean
from vq_jax.config import base
from vq_jax.errors import UserError
from vq_jax.tasks.train_tokenizer import make_phases, make_recipe
from vq_jax.training import parallel
from vq_jax.training.steps import init_state, initialise_codebook, train_step

KEY = jax.random.key(0)


def recipe_and_phases():
    config = base("vqgan")
    config.model.update(ch=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), z_channels=8)
    config.quantizer.update(
        num_codes=16, dim=8, revive_below=0.5, variance_weight=0.1, usage_weight=0.1
    )
    config.discriminator.update(ndf=8, n_layers=1, norm="batch")
    config.loss.perceptual_weight = 0.0
    config.adversarial.update(r1_weight=1.0, r1_every=2, lecam_weight=0.1)
    config.phases.update(joint=1, adversarial=4)
    # Plain gradient descent: Adam would blow the rounding of a zero gradient up to a full step.
    recipe = dataclasses.replace(
        make_recipe(config), optimizer=optax.sgd(0.05), disc_optimizer=optax.sgd(0.05)
    )
    return recipe, make_phases(config)


def run(mode, batches):
    recipe, phases = recipe_and_phases()
    state = jax.jit(partial(init_state, recipe, image_shape=(16, 16, 3)))(KEY)

    def compiled(step):
        return jax.jit(step) if mode == "one" else parallel.compile_step(step, mode, state)

    def shard(batch):
        return batch if mode == "one" else parallel.shard_batch(batch, mode)

    if mode != "one":
        state = parallel.make_state(lambda state: state, state)
    state, _ = compiled(partial(initialise_codebook, recipe=recipe))(state, shard(batches[0]), KEY)
    found = []
    for phase in phases:
        step = compiled(partial(train_step, recipe=recipe, phase=phase))
        for batch in batches[phase.start : phase.start + phase.steps]:
            state, metrics = step(state, shard(batch), KEY)
            found.append(jax.device_get(metrics))
    return jax.device_get(state), found


@pytest.fixture(scope="module")
def batches(emoji_images):
    images = np.ascontiguousarray(emoji_images[:, ::2, ::2])
    return [{"image": np.roll(images, 3 * i, axis=2)} for i in range(5)]


@pytest.fixture(scope="module")
def one(batches):
    return run("one", batches)


@pytest.mark.parametrize("mode", parallel.PARALLEL)
def test_five_gan_steps_agree_with_one_device(mode, batches, one):
    state, metrics = run(mode, batches)
    for ours, theirs in zip(metrics, one[1], strict=True):
        chex.assert_trees_all_close(ours, theirs, rtol=1e-3, atol=1e-5)
    assert float(state.step) == 5
    chex.assert_trees_all_close(state.generator.params, one[0].generator.params, atol=1e-5)
    chex.assert_trees_all_close(state.discriminator.params, one[0].discriminator.params, atol=1e-5)
    chex.assert_trees_all_close(state.generator.stats, one[0].generator.stats, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", parallel.PARALLEL)
def test_a_step_is_compiled_once(mode, batches):
    traced = []

    def step(state, batch, key, *, axis_name=None):
        traced.append(1)
        mean = pmean(batch["image"].mean(), axis_name)
        return state + mean + jax.random.normal(key), {"mean": mean}

    state = parallel.make_state(lambda: jnp.zeros(3))
    compiled = parallel.compile_step(step, mode, state)
    for batch in batches[:3]:
        state, metrics = compiled(state, parallel.shard_batch(batch, mode), KEY)
        assert float(metrics["mean"]) == pytest.approx(float(batch["image"].mean()), rel=1e-5)
    assert len(traced) == 1


def test_what_cannot_be_spread_is_said():
    with pytest.raises(UserError, match="does not divide over 4 devices"):
        parallel.check("pmap", 6)
    with pytest.raises(UserError, match="stride 4 does not divide the 2 images"):
        parallel.check("pmap", 8, 4)
    with pytest.raises(UserError, match="pmap, jit"):
        parallel.check("pmapp", 8)


def test_shards_hold_the_batch(batches):
    split = parallel.shard_batch(batches[0], "pmap")["image"]
    chex.assert_shape(split, (4, 4, 16, 16, 3))
    whole = parallel.shard_batch(batches[0], "jit")["image"]
    chex.assert_trees_all_equal(np.asarray(whole), batches[0]["image"])
    assert len(whole.addressable_shards) == 4
    chex.assert_trees_all_equal(jnp.asarray(split).reshape(16, 16, 16, 3), whole)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_memory_that_is_kept_is_not_asked_for_again():
    program = """
import resource, sys
from vq_jax.training import parallel
if sys.argv[1] == "keep":
    parallel.keep_memory()
for i in range(20):
    held = bytearray(2**26)
    held = None
    if i == 9:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

    def faults(how):
        command = [sys.executable, "-c", program, how]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert faults("keep") < 100 < faults("plain")

"""Training with pmap or jit on four devices gives the same results as on one device."""

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
    # SGD, since Adam would turn the rounding error of a zero gradient into a full step.
    recipe = dataclasses.replace(
        make_recipe(config), optimizer=optax.sgd(0.05), disc_optimizer=optax.sgd(0.05)
    )
    return recipe, make_phases(config)


def run(mode, batches):
    """Trains on one device (`mode` "one") or in parallel; returns the state and all metrics."""
    recipe, phases = recipe_and_phases()
    state = jax.jit(
        partial(init_state, recipe, spec=jax.ShapeDtypeStruct((16, 16, 3), jnp.float32))
    )(KEY)

    def compiled(step):
        return jax.jit(step) if mode == "one" else parallel.compile_step(step, mode, state)

    def shard(batch):
        return batch if mode == "one" else parallel.shard_batch(batch, mode)

    if mode != "one":
        state = parallel.make_state(lambda state: state, state)
    state, _ = compiled(partial(initialise_codebook, recipe=recipe))(state, shard(batches[0]), KEY)
    history = []
    for phase in phases:
        step = compiled(partial(train_step, recipe=recipe, phase=phase))
        for batch in batches[phase.start : phase.start + phase.steps]:
            state, metrics = step(state, shard(batch), KEY)
            history.append(jax.device_get(metrics))
    return jax.device_get(state), history


@pytest.fixture(scope="module")
def batches(emoji_images):
    images = np.ascontiguousarray(emoji_images[:, ::2, ::2])
    return [{"x": np.roll(images, 3 * i, axis=2)} for i in range(5)]


@pytest.fixture(scope="module")
def one_device(batches):
    return run("one", batches)


@pytest.mark.parametrize("mode", parallel.PARALLEL)
def test_five_gan_steps_equal_those_of_one_device(mode, batches, one_device):
    state, history = run(mode, batches)
    expected, expected_history = one_device
    for metrics, expected_metrics in zip(history, expected_history, strict=True):
        chex.assert_trees_all_close(metrics, expected_metrics, rtol=1e-3, atol=1e-5)
    assert float(state.step) == 5
    chex.assert_trees_all_close(state.generator.params, expected.generator.params, atol=1e-5)
    chex.assert_trees_all_close(
        state.discriminator.params, expected.discriminator.params, atol=1e-5
    )
    chex.assert_trees_all_close(
        state.generator.stats, expected.generator.stats, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("mode", parallel.PARALLEL)
def test_a_step_is_compiled_once(mode, batches):
    traces = []

    def step(state, batch, key, *, axis_name=None):
        traces.append(1)
        mean = pmean(batch["x"].mean(), axis_name)
        return state + mean + jax.random.normal(key), {"mean": mean}

    state = parallel.make_state(lambda: jnp.zeros(3))
    compiled = parallel.compile_step(step, mode, state)
    for batch in batches[:3]:
        state, metrics = compiled(state, parallel.shard_batch(batch, mode), KEY)
        assert float(metrics["mean"]) == pytest.approx(float(batch["x"].mean()), rel=1e-5)
    assert len(traces) == 1


def test_batches_that_do_not_divide_over_the_devices_are_rejected():
    with pytest.raises(UserError, match="does not divide over 4 devices"):
        parallel.check("pmap", 6)
    with pytest.raises(UserError, match="stride 4 does not divide the 2 examples"):
        parallel.check("pmap", 8, 4)
    with pytest.raises(UserError, match="pmap, jit"):
        parallel.check("pmapp", 8)


def test_shards_make_up_the_batch(batches):
    split = parallel.shard_batch(batches[0], "pmap")["x"]
    chex.assert_shape(split, (4, 4, 16, 16, 3))
    whole = parallel.shard_batch(batches[0], "jit")["x"]
    chex.assert_trees_all_equal(np.asarray(whole), batches[0]["x"])
    assert len(whole.addressable_shards) == 4
    chex.assert_trees_all_equal(jnp.asarray(split).reshape(16, 16, 16, 3), whole)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_disable_malloc_trim_avoids_page_faults():
    program = """
import resource, sys
from vq_jax.training import parallel
if sys.argv[1] == "keep":
    parallel.disable_malloc_trim()
for i in range(20):
    held = bytearray(2**26)
    held = None
    if i == 9:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

    def page_faults(allocation):
        command = [sys.executable, "-c", program, allocation]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert page_faults("keep") < 100 < page_faults("plain")

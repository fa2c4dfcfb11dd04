"""The training step of tokenizers, on small models and real images."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vq_jax import losses
from vq_jax.config import base, make_discriminator, make_tokenizer
from vq_jax.training import steps
from vq_jax.training.steps import (
    Recipe,
    TokenizerPhase,
    init_state,
    initialise_codebook,
    train_step,
)

KEY = jax.random.key(0)
PHASES = {
    "autoencoder": TokenizerPhase("autoencoder", 9, 0, ("encoder", "decoder"), quantize=False),
    "quantizer": TokenizerPhase("quantizer", 9, 0, ("quantizer",)),
    "joint": TokenizerPhase("joint", 9, 0),
    "adversarial": TokenizerPhase("adversarial", 9, 0, adversarial=True),
}


def make(codebook="ema", **changes) -> Recipe:
    config = base("vqvae")
    config.model.update(hidden=16, res_hidden=8, num_res_blocks=1)
    config.quantizer.update(num_codes=32, dim=8, codebook=codebook)
    config.discriminator.update(ndf=8, n_layers=1)
    config.phases.adversarial = 1
    defaults = Recipe(
        tokenizer=make_tokenizer(config),
        discriminator=make_discriminator(config),
        optimizer=optax.adamw(1e-3, weight_decay=1e-2),
        disc_optimizer=optax.adam(1e-3),
        reconstruction=losses.l1,
    )
    return dataclasses.replace(defaults, **changes)


def run(recipe, phase, state, images, count=1):
    """Takes `count` steps on the same batch; returns the state and the last metrics."""
    step = jax.jit(partial(train_step, recipe=recipe, phase=phase))
    for _ in range(count):
        state, metrics = step(state, {"x": jnp.asarray(images)}, KEY)
    return state, metrics


@pytest.fixture(scope="module")
def images(emoji_images):
    return emoji_images[:8]


@pytest.fixture(scope="module")
def warm(images):
    """A function that returns a state with nonzero optimizer moments and a k-means codebook."""
    cache = {}

    def start(recipe, codebook):
        if codebook not in cache:
            state = jax.jit(
                partial(init_state, recipe, spec=jax.ShapeDtypeStruct((32, 32, 3), jnp.float32))
            )(KEY)
            state, _ = run(recipe, PHASES["autoencoder"], state, images, 2)
            state, _ = jax.jit(partial(initialise_codebook, recipe=recipe))(
                state, {"x": images}, KEY
            )
            cache[codebook] = run(recipe, PHASES["adversarial"], state, images, 2)[0]
        return cache[codebook]

    return start


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
@pytest.mark.parametrize("name", PHASES)
def test_a_phase_changes_only_the_groups_that_it_trains(name, codebook, images, warm):
    recipe, phase = make(codebook), PHASES[name]
    before = warm(recipe, codebook)
    after, _ = run(recipe, phase, before, images, 2)
    for group, params in before.generator.params.items():
        changed = any(
            not np.array_equal(a, b)
            for a, b in zip(
                jax.tree.leaves(params), jax.tree.leaves(after.generator.params[group]), strict=True
            )
        )
        assert changed == (group in phase.trains), group
        if group not in phase.trains:
            for moments in ("mu", "nu"):
                old = optax.tree.get(before.generator.opt_state, moments)[group]
                new = optax.tree.get(after.generator.opt_state, moments)[group]
                chex.assert_trees_all_equal(old, new)
    if "quantizer" not in phase.trains:
        chex.assert_trees_all_equal(before.generator.stats, after.generator.stats)
    if not phase.adversarial:
        chex.assert_trees_all_equal(before.discriminator, after.discriminator)
        chex.assert_trees_all_equal(before.lecam, after.lecam)


def test_the_autoencoder_phase_does_not_use_the_codebook(images, warm):
    recipe = make()
    state = warm(recipe, "ema")
    other = jax.tree.map(lambda x: x, state)
    other.generator.params["quantizer"] = {"book": {"codebook": jnp.full((32, 8), 5.0)}}
    metrics = [run(recipe, PHASES["autoencoder"], s, images)[1] for s in (state, other)]
    chex.assert_trees_all_equal(*(m["loss_reconstruction"] for m in metrics))


@pytest.mark.parametrize("adversary", ["hinge", "non_saturating"])
def test_updates_are_the_gradients_of_the_vqgan_objective(adversary, images, warm):
    """Compares both updates with autodiff of the objective of Esser et al."""
    learning_rate = 0.1
    recipe = make(
        "gradient",
        optimizer=optax.sgd(learning_rate),
        disc_optimizer=optax.sgd(learning_rate),
        adversarial=losses.ADVERSARIAL[adversary],
        adversarial_weight=0.8,
        codebook_weight=0.7,
    )
    state = warm(make("gradient"), "gradient")
    state = state.replace(
        generator=state.generator.replace(opt_state=recipe.optimizer.init(state.generator.params)),
        discriminator=state.discriminator.replace(
            opt_state=recipe.disc_optimizer.init(state.discriminator.params)
        ),
    )
    x = jnp.asarray(images)
    disc_params = state.discriminator.params
    disc_loss, gen_loss = losses.ADVERSARIAL[adversary]

    def forward(params):
        variables = {"params": params, **state.generator.stats}
        z = recipe.tokenizer.apply(variables, x, method="encode")
        z_q, _, aux = recipe.tokenizer.apply(variables, z, method="quantize")
        return recipe.tokenizer.apply(variables, z_q, method="decode_latents"), aux["loss"]

    def logits(p, images):
        return recipe.discriminator.apply({"params": p}, images)

    def rec(params):
        return losses.l1(forward(params)[0], x).mean()

    def adv(params):
        return gen_loss(logits(disc_params, forward(params)[0])).mean()

    def last(g):
        return jnp.linalg.norm(g["decoder"]["conv_out"]["kernel"])

    @jax.jit
    def reference(params):
        adaptive = last(jax.grad(rec)(params)) / (last(jax.grad(adv)(params)) + 1e-4)
        adaptive = jnp.clip(adaptive, 0, 1e4)

        def objective(params):
            return rec(params) + 0.8 * adaptive * adv(params) + 0.7 * forward(params)[1]

        fake = forward(params)[0]
        disc = jax.grad(lambda p: disc_loss(logits(p, x), logits(p, fake)).mean())(disc_params)
        return adaptive, jax.grad(objective)(params), disc

    params = state.generator.params
    adaptive, grads, disc_grads = reference(params)
    after, metrics = run(recipe, PHASES["adversarial"], state, images)
    assert metrics["adaptive_weight"] == pytest.approx(float(adaptive), rel=1e-3)
    for group in ("encoder", "decoder"):
        expected = jax.tree.map(lambda p, g: p - learning_rate * g, params[group], grads[group])
        chex.assert_trees_all_close(after.generator.params[group], expected, atol=2e-5)
    expected = jax.tree.map(lambda p, g: p - learning_rate * g, disc_params, disc_grads)
    chex.assert_trees_all_close(after.discriminator.params, expected, atol=1e-5)


def test_the_discriminator_does_not_affect_the_generator_during_its_warmup(images, warm):
    recipe = make(disc_warmup=100, disc_ramp=10)
    state = warm(recipe, "ema").replace(step=jnp.int32(99))
    with_adversary, metrics = run(recipe, PHASES["adversarial"], state, images)
    without, _ = run(recipe, PHASES["joint"], state, images)
    chex.assert_trees_all_close(
        with_adversary.generator.params, without.generator.params, atol=1e-7
    )
    assert metrics["loss_discriminator"] > 0
    assert steps._ramp(jnp.int32(99), recipe) == 0
    assert steps._ramp(jnp.int32(100), recipe) == pytest.approx(0.1)
    assert steps._ramp(jnp.int32(104), recipe) == pytest.approx(0.5)
    assert steps._ramp(jnp.int32(500), recipe) == 1


def test_r1_acts_only_on_every_nth_step(images, warm):
    plain, lazy = make(), make(r1_weight=10.0, r1_every=4)
    state = warm(plain, "ema")

    def difference(step):
        s = state.replace(step=jnp.int32(step))
        a, b = (run(r, PHASES["adversarial"], s, images)[0].discriminator for r in (plain, lazy))
        return float(optax.tree.norm(optax.tree.sub(a.opt_state[0].mu, b.opt_state[0].mu)))

    assert difference(4) > 1e-4
    assert difference(5) < 1e-6


def test_lecam_keeps_moving_averages_of_the_logits(images, warm):
    recipe = make(lecam_weight=0.1, lecam_decay=0.9)
    state = warm(recipe, "ema")
    after, metrics = run(recipe, PHASES["adversarial"], state, images)
    for name in ("real", "fake"):
        expected = 0.9 * state.lecam[name] + 0.1 * metrics[f"logits_{name}"]
        assert float(after.lecam[name]) == pytest.approx(float(expected), rel=1e-4)


def test_the_perceptual_loss_is_computed_only_in_phases_that_use_it(images, warm):
    recipe = make(
        perceptual=lambda a, b: jnp.mean(jnp.square(a - b), axis=(1, 2, 3)),
        perceptual_weight=3.0,
        perceptual_stride=2,
    )
    state = warm(recipe, "ema")
    _, metrics = run(recipe, PHASES["joint"], state, images)
    assert metrics["loss_perceptual"] > 0
    without = dataclasses.replace(PHASES["joint"], perceptual=False)
    assert "loss_perceptual" not in run(recipe, without, state, images)[1]


def test_evaluation_params_are_a_moving_average(images, warm):
    recipe = make(ema_decay=0.5)
    state = warm(recipe, "ema").replace(step=jnp.int32(1000))
    after, _ = run(recipe, PHASES["joint"], state, images)
    expected = jax.tree.map(
        lambda old, new: 0.5 * old + 0.5 * new, state.generator.ema_params, after.generator.params
    )
    chex.assert_trees_all_close(after.generator.ema_params, expected, atol=1e-6)


def test_the_moving_average_of_a_revived_entry_is_the_entry(images, warm):
    recipe = make(ema_decay=0.999)
    state = warm(recipe, "ema").replace(step=jnp.int32(10_000))
    stats = state.generator.stats["codebook"]["quantizer"]["book"]
    dead = {"book": {**stats, "cluster_size": stats["cluster_size"].at[0, 5].set(0.0)}}
    generator = state.generator
    entries = generator.params["quantizer"]["book"]["codebook"]
    params = {
        **generator.params,
        "quantizer": {"book": {"codebook": entries.at[5].set(99.0)}},
    }
    generator = generator.replace(stats={"codebook": {"quantizer": dead}}, params=params)
    after, metrics = run(recipe, PHASES["joint"], state.replace(generator=generator), images)
    assert metrics["revived"] >= 1
    entry, average = (
        p["quantizer"]["book"]["codebook"][5]
        for p in (after.generator.params, after.generator.ema_params)
    )
    chex.assert_trees_all_equal(entry, average)
    assert float(jnp.abs(entry).max()) < 50


def test_initialisation_changes_only_the_codebook_and_its_average(images, warm):
    recipe = make()
    state = warm(recipe, "ema")
    after, _ = jax.jit(partial(initialise_codebook, recipe=recipe))(state, {"x": images}, KEY)
    for group in ("encoder", "decoder"):
        chex.assert_trees_all_equal(after.generator.params[group], state.generator.params[group])
    codebook = after.generator.params["quantizer"]["book"]["codebook"]
    chex.assert_trees_all_equal(
        codebook, after.generator.ema_params["quantizer"]["book"]["codebook"]
    )
    assert not np.array_equal(codebook, state.generator.params["quantizer"]["book"]["codebook"])


def test_bfloat16_training_keeps_a_float32_state(images):
    config = base("vqvae")
    config.dtype = "bfloat16"
    config.model.update(hidden=16, res_hidden=8, num_res_blocks=1)
    config.quantizer.update(num_codes=32, dim=8)
    recipe = make(tokenizer=make_tokenizer(config))
    state = jax.jit(
        partial(init_state, recipe, spec=jax.ShapeDtypeStruct((32, 32, 3), jnp.float32))
    )(KEY)
    state, metrics = run(recipe, PHASES["adversarial"], state, images)
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    chex.assert_type(floats, jnp.float32)
    assert all(np.isfinite(v) for v in metrics.values())


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_training_reduces_the_loss_and_uses_the_codebook(codebook, images):
    recipe = make(codebook, optimizer=optax.adam(3e-3))
    state = jax.jit(
        partial(init_state, recipe, spec=jax.ShapeDtypeStruct((32, 32, 3), jnp.float32))
    )(KEY)
    state, first = run(recipe, PHASES["autoencoder"], state, images)
    state, _ = run(recipe, PHASES["autoencoder"], state, images, 60)
    state, _ = jax.jit(partial(initialise_codebook, recipe=recipe))(state, {"x": images}, KEY)
    state, last = run(recipe, PHASES["joint"], state, images, 60)
    assert last["loss_reconstruction"] < 0.6 * first["loss_reconstruction"]
    assert last["usage"] > 0.5


@pytest.mark.parametrize("phase", PHASES)
def test_a_step_with_infinite_pixels_is_skipped_and_counted(phase, images, warm):
    recipe = make()
    state = warm(recipe, "ema")
    broken = images.copy()
    broken[3, 5, 5] = np.inf
    after, metrics = run(recipe, PHASES[phase], state, broken)
    assert metrics["skipped"] == 1
    expected = state.replace(step=state.step + 1, skipped=state.skipped + 1)
    chex.assert_trees_all_equal(after, expected)
    after, metrics = run(recipe, PHASES[phase], after, images)
    assert metrics["skipped"] == 1 and after.step == state.step + 2
    chex.assert_tree_all_finite(after)
    assert any(
        (a != b).any() for a, b in zip(*map(jax.tree.leaves, (after, expected)), strict=True)
    )


def test_a_scheduled_field_follows_its_schedule(images, warm):
    recipe = make(anneal={"beta": optax.linear_schedule(0.0, 1.0, 4, 10)})
    state = warm(recipe, "ema")
    for step, beta in ((5, 0.0), (12, 0.5), (99, 1.0)):
        _, metrics = run(recipe, PHASES["joint"], state.replace(step=jnp.int32(step)), images)
        expected = beta * metrics["loss_commitment"]
        assert float(metrics["loss_quantizer"]) == pytest.approx(float(expected), abs=1e-7)


@pytest.mark.parametrize("quantizer", ["residual/gumbel", "fsq"])
def test_any_quantizer_trains_in_every_phase(quantizer, images):
    config = base("vqvae", quantizer)
    config.model.update(hidden=16, res_hidden=8, num_res_blocks=1)
    section = config.quantizer.get("inner", config.quantizer)
    if "num_codes" in section:
        section.update(num_codes=16, dim=4)
    recipe = make(tokenizer=make_tokenizer(config))
    state = jax.jit(
        partial(init_state, recipe, spec=jax.ShapeDtypeStruct((32, 32, 3), jnp.float32))
    )(KEY)
    state, _ = jax.jit(partial(initialise_codebook, recipe=recipe))(state, {"x": images}, KEY)
    for name in ("quantizer", "adversarial"):
        before = state
        state, metrics = run(recipe, PHASES[name], state, images)
        assert metrics["skipped"] == 0 and 0 < metrics["usage"] <= 1
        chex.assert_trees_all_equal_shapes_and_dtypes(before, state)

"""The training step as a pure function of state, batch and key.

    step(state, batch, key, *, axis_name=None) -> (state, metrics)

A `Recipe` holds what is fixed for a run (modules, optimizers, loss weights), a `Phase` what is fixed
for a phase. `parallel.py` compiles the step and spreads it over devices.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from vq_jax import losses, metrics
from vq_jax.collectives import pmean
from vq_jax.models import Tokenizer
from vq_jax.quantizers.functions import row_keys
from vq_jax.training.state import GanState, TrainState
from vq_jax.training.update import finalize_step, moving_average, update

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]

_MUTABLE = ("params", "codebook")
# Folded into a step's key for the quantizer's noise; levels and heads fold in smaller numbers.
_NOISE = 2**32 - 2
_QUALITY = 2**32 - 3  # folded in for the qualities of a batch
_NESTED = 2**32 - 4  # folded in for the number of latents kept


@dataclasses.dataclass(frozen=True)
class Phase:
    """A phase of training.

    Attributes:
      name: as in the config.
      steps: number of steps.
      start: first step.
    """

    name: str
    steps: int
    start: int


@dataclasses.dataclass(frozen=True)
class TokenizerPhase(Phase):
    """A phase of a tokenizer's training.

    Attributes:
      trains: param groups of the generator that are updated; the others are frozen.
      quantize: whether latents are quantized; otherwise the decoder gets them as they are.
      adversarial: whether the discriminator takes part.
      perceptual: whether the perceptual loss is on.
    """

    trains: tuple[str, ...] = ("encoder", "quantizer", "decoder")
    quantize: bool = True
    adversarial: bool = False
    perceptual: bool = True


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is fixed for all steps of a run.

    Attributes:
      tokenizer: a `models.Tokenizer`.
      discriminator: a discriminator module, or None.
      optimizer, disc_optimizer: their Optax chains.
      reconstruction: unreduced loss of (prediction, target).
      reconstruction_weight, codebook_weight, perceptual_weight: weights of the loss terms.
      perceptual: perceptual loss (reconstruction, example) -> [B], or None.
      quality_power: exponent of the uniform numbers that qualities of examples are drawn as.
      perceptual_stride: the perceptual loss is computed on every n-th example of the batch.
      adversarial: (discriminator's loss, generator's loss), unreduced, of logits.
      adversarial_weight: weight of the generator's adversarial loss, before the adaptive weight.
      adaptive_limit: clip of the adaptive weight; 0 for a fixed weight.
      disc_warmup: steps in which the discriminator trains and does not affect the generator.
      disc_ramp: steps in which the weight of the adversarial loss then grows from 0.
      r1_weight, r1_every: lazy R1 (Karras et al. 2020, appendix B): gamma, and steps between.
      lecam_weight, lecam_decay: weight of LeCAM and decay of its moving averages.
      ema_decay: decay of the averaged params used in evaluation.
      anneal: quantizer fields that change: name -> schedule of the step, int32 [].
    """

    tokenizer: Tokenizer
    discriminator: nn.Module | None
    optimizer: optax.GradientTransformation
    disc_optimizer: optax.GradientTransformation | None
    reconstruction: Callable[[jax.Array, jax.Array], jax.Array]
    reconstruction_weight: float = 1.0
    codebook_weight: float = 1.0
    quality_power: float = 1.0
    perceptual_weight: float = 0.0
    perceptual: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    perceptual_stride: int = 1
    adversarial: tuple[Callable, Callable] = losses.ADVERSARIAL["hinge"]
    adversarial_weight: float = 0.8
    adaptive_limit: float = 1e4
    disc_warmup: int = 0
    disc_ramp: int = 0
    r1_weight: float = 0.0
    r1_every: int = 16
    lecam_weight: float = 0.0
    lecam_decay: float = 0.999
    ema_decay: float = 0.999
    anneal: Mapping[str, optax.Schedule] = dataclasses.field(default_factory=dict)


def init_state(recipe: Recipe, key: jax.Array, spec: jax.ShapeDtypeStruct) -> GanState:
    """Initialises the state.

    Args:
      recipe: what is trained.
      key: PRNG key.
      spec: shape and dtype of one example, such as float32 (H, W, C).
    """
    key_generator, key_discriminator = jax.random.split(key)
    x = jnp.zeros((1, *spec.shape), spec.dtype)
    variables = recipe.tokenizer.init(key_generator, x)
    params = variables["params"]
    generator = TrainState(
        params=params,
        opt_state=recipe.optimizer.init(params),
        ema_params=jax.tree.map(jnp.copy, params),
        stats={name: v for name, v in variables.items() if name != "params"},
    )
    discriminator = TrainState(params={}, opt_state=(), ema_params={}, stats={})
    if recipe.discriminator is not None and recipe.disc_optimizer is not None:
        disc_params = recipe.discriminator.init(key_discriminator, x)["params"]
        discriminator = discriminator.replace(
            params=disc_params, opt_state=recipe.disc_optimizer.init(disc_params)
        )
    zero = jnp.zeros((), jnp.float32)
    return GanState(
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        generator=generator,
        discriminator=discriminator,
        lecam={"real": zero, "fake": zero + 0.0},
    )


def initialise_codebook(
    state: GanState,
    batch: Batch,
    key: jax.Array,
    *,
    recipe: Recipe,
    batches: int = 1,
    axis_name: str | None = None,
) -> tuple[GanState, Metrics]:
    """Initialises the codebook from the latents of a batch (k-means), without a training step.

    Args and returns are those of `train_step`; `batches` is the number of batches joined in `batch`.
    """
    generator = state.generator
    variables = {"params": generator.params, **generator.stats}
    z = recipe.tokenizer.apply(variables, batch["x"], method="encode")
    _, changed = recipe.tokenizer.apply(
        variables,
        z,
        jax.random.fold_in(key, state.step),
        batches,
        axis_name,
        method="initialise_codebook",
        mutable=list(_MUTABLE),
    )
    params, stats = _merge(generator.params, generator.stats, changed)
    # The average must not lag behind a codebook that has just been replaced.
    ema_params = {**generator.ema_params, "quantizer": params.get("quantizer", {})}
    ema_params = {name: ema_params[name] for name in generator.ema_params}
    generator = generator.replace(params=params, stats=stats, ema_params=ema_params)
    return state.replace(generator=generator), {}


def train_step(
    state: GanState,
    batch: Batch,
    key: jax.Array,
    *,
    recipe: Recipe,
    phase: TokenizerPhase,
    axis_name: str | None = None,
) -> tuple[GanState, Metrics]:
    """Updates the generator and, in an adversarial phase, the discriminator.

    The generator runs forward once. The gradients of all losses are taken at its output, weighted by
    their norms at its last layer, and propagated back together. The discriminator sees the same output.
    A step with a loss or gradient that is NaN or infinite changes nothing but the step counters.

    It is one function because the two `jax.vjp`s share the forward pass, and all parts use its closures.

    Args:
      state: before the step.
      batch: `x` float32 [B, ...], this device's share of the examples.
      key: the run's PRNG key; the step uses fold_in(key, state.step).
      recipe, phase: static.
      axis_name: mapped axis, or None.

    Returns:
      the state after the step, and metrics: float32 scalars, averaged over devices. `skipped` is the
      number of skipped steps so far.
    """
    x = batch["x"]
    key = jax.random.fold_in(key, state.step)
    generator = state.generator
    trained = {name: generator.params[name] for name in phase.trains if name in generator.params}
    scheduled = {name: value(state.step) for name, value in recipe.anneal.items()}
    noise_key = jax.random.fold_in(key, _NOISE)
    quality = _draw_quality(recipe, key, len(x), axis_name)

    def apply(params, *args, method):
        variables = {"params": {**generator.params, **params}, **generator.stats}
        return recipe.tokenizer.apply(variables, *args, method=method)

    def body(params):
        z = apply(params, x, quality, method="encode")
        if phase.quantize:
            z_q, codes, aux = apply(
                params, z, axis_name, noise_key, scheduled, quality, method="quantize"
            )
        else:
            z_q, codes = apply(params, z, method="pass_through"), None
            aux = {"loss": jnp.zeros((), jnp.float32)}
        z_q = apply(params, z_q, jax.random.fold_in(key, _NESTED), axis_name, method="drop_last")
        return (apply(params, z_q, x, quality, method="features"), aux["loss"]), (z, codes, aux)

    (h, quantizer_loss), body_vjp, (z, codes, aux) = jax.vjp(body, trained, has_aux=True)
    output, head_vjp = jax.vjp(lambda p, h: apply(p, h, method="head"), trained, h)

    reconstruct = jax.value_and_grad(_reconstruction_loss, has_aux=True)
    (_, report), d_output = reconstruct(output, x, quality, recipe, phase)
    report["loss_quantizer"] = quantizer_loss
    report |= {f"loss_{name}": term for name, term in aux.items() if name not in ("loss", "counts")}

    disc_state, lecam = state.discriminator, state.lecam
    if phase.adversarial:
        d_adversarial, disc_grads, disc_report, lecam = _adversarial_gradients(
            state, x, output, recipe, axis_name
        )
        weight = recipe.adversarial_weight * _ramp(state.step - phase.start, recipe)
        if recipe.adaptive_limit:
            last = [pmean(head_vjp(d)[0], axis_name) for d in (d_output, d_adversarial)]
            adaptive = losses.adaptive_weight(
                losses.kernel_norm(last[0]), losses.kernel_norm(last[1]), recipe.adaptive_limit
            )
            report["adaptive_weight"] = adaptive
            weight *= adaptive
        d_output += weight * d_adversarial
        disc_grads = pmean(disc_grads, axis_name)
        disc_state = update(disc_state, disc_grads, recipe.disc_optimizer)
        report |= disc_report | {"disc_grad_norm": optax.tree.norm(disc_grads)}

    last_grads, d_h = head_vjp(d_output)
    (body_grads,) = body_vjp((d_h, jnp.float32(recipe.codebook_weight)))
    grads = pmean(jax.tree.map(jnp.add, body_grads, last_grads), axis_name)
    report["grad_norm"] = optax.tree.norm(grads)
    generator = update(generator, grads, recipe.optimizer)

    renewed: Mapping[str, Any] = {}
    if phase.quantize:
        report["perplexity"] = metrics.perplexity(aux["counts"]).mean()
        report["usage"] = metrics.usage(aux["counts"]).mean()
        if "quantizer" in phase.trains:
            variables = {"params": generator.params, **generator.stats}
            renewed, changed = recipe.tokenizer.apply(
                variables,
                z,
                codes,
                key,
                axis_name,
                method="update_codebook",
                mutable=list(_MUTABLE),
            )
            params, stats = _merge(generator.params, generator.stats, changed)
            generator = generator.replace(params=params, stats=stats)
            report["revived"] = _revived(renewed)
    ema_params = moving_average(
        generator.params, state.generator.ema_params, state.step, recipe.ema_decay
    )
    if renewed and "quantizer" in ema_params:
        # A revived entry moves far: its average with the old place would be meaningless.
        ema_params["quantizer"] = _overwrite(
            ema_params["quantizer"], generator.params["quantizer"], renewed
        )
    generator = generator.replace(ema_params=ema_params)

    after = state.replace(generator=generator, discriminator=disc_state, lecam=lecam)
    return finalize_step(state, after, pmean(report, axis_name))


def _draw_quality(recipe: Recipe, key, examples: int, axis_name: str | None):
    """Draws the quality of each example, float32 [B] in [0, 1), or returns None if there is none."""
    if not recipe.tokenizer.takes_quality:
        return None
    keys = row_keys(jax.random.fold_in(key, _QUALITY), examples, axis_name)
    drawn = jax.vmap(lambda key: jax.random.uniform(key))(keys) ** recipe.quality_power
    return jnp.minimum(drawn, 1 - 2.0**-24)  # A small power rounds to 1.


def _reconstruction_loss(output, x, quality, recipe: Recipe, phase: TokenizerPhase):
    error = recipe.reconstruction(output, x)
    if quality is not None:
        weight = recipe.tokenizer.distortion_weight(quality)
        error = error.reshape(len(x), -1) * weight[:, None]
    reconstruction = jnp.mean(error)
    loss = recipe.reconstruction_weight * reconstruction
    report = {"loss_reconstruction": reconstruction}
    if phase.perceptual and recipe.perceptual is not None:
        stride = recipe.perceptual_stride
        perceptual = jnp.mean(recipe.perceptual(output[::stride], x[::stride]))
        loss += recipe.perceptual_weight * perceptual
        report["loss_perceptual"] = perceptual
    return loss, report


def _ramp(steps_in_phase: jax.Array, recipe: Recipe) -> jax.Array:
    """Weight of the adversarial loss: 0 while the discriminator warms up, then linear up to 1."""
    weight = (steps_in_phase - recipe.disc_warmup + 1) / max(1, recipe.disc_ramp)
    return jnp.clip(weight, 0.0, 1.0).astype(jnp.float32)


def _adversarial_gradients(state: GanState, x, output, recipe: Recipe, axis_name: str | None):
    """Gradients of the adversarial losses, from one pass of the discriminator over the output.

    Returns:
      d generator loss / d output; the gradients of the discriminator; metrics; LeCAM's averages.
    """
    discriminator = recipe.discriminator
    assert discriminator is not None
    disc_loss, gen_loss = recipe.adversarial

    def logits_of(params, examples):
        return discriminator.apply({"params": params}, examples, axis_name=axis_name)

    params = state.discriminator.params
    fake, fake_vjp = jax.vjp(logits_of, params, output)
    real, real_vjp = jax.vjp(lambda p: logits_of(p, x), params)

    generator_loss, d_fake = jax.value_and_grad(lambda logits: gen_loss(logits).mean())(fake)
    _, d_output = fake_vjp(d_fake)

    lecam = state.lecam
    report = {
        "loss_generator": generator_loss,
        "logits_real": real.mean(),
        "logits_fake": fake.mean(),
        "disc_accuracy": ((real > 0).mean() + (fake < 0).mean()) / 2,
    }

    def discriminate(real, fake):
        loss = disc_loss(real, fake).mean()
        if recipe.lecam_weight:
            penalty = losses.lecam(real, fake, lecam["real"], lecam["fake"]).mean()
            loss += recipe.lecam_weight * penalty
        return loss

    loss, (d_real, d_fake) = jax.value_and_grad(discriminate, argnums=(0, 1))(real, fake)
    grads = jax.tree.map(jnp.add, real_vjp(d_real)[0], fake_vjp(d_fake)[0])
    report["loss_discriminator"] = loss

    if recipe.r1_weight:

        def penalty(p):
            r1 = losses.r1_penalty(lambda examples: logits_of(p, examples), x).mean()
            return 0.5 * recipe.r1_weight * recipe.r1_every * r1

        r1_grads = jax.lax.cond(
            state.step % recipe.r1_every == 0,
            jax.grad(penalty),
            lambda p: jax.tree.map(jnp.zeros_like, p),
            params,
        )
        grads = jax.tree.map(jnp.add, grads, r1_grads)

    if recipe.lecam_weight:
        means = pmean({"real": real.mean(), "fake": fake.mean()}, axis_name)
        lecam = optax.incremental_update(means, lecam, 1 - recipe.lecam_decay)
    return d_output, grads, report, lecam


def _merge(params, stats, changed):
    """Returns params and statistics with the variables that a mutable apply has changed."""
    changed = dict(changed)
    params = {**params, **changed.pop("params", {})}
    return params, {**stats, **changed}


def _revived(masks) -> jax.Array:
    """Number of revived codebook entries."""
    leaves = jax.tree_util.tree_leaves_with_path(masks)
    return jnp.float32(sum(mask.sum() for path, mask in leaves if path[-1].key == "codebook"))


def _overwrite(average, current, masks):
    """Replaces values of `average` by those of `current` where masks are True."""
    merged = dict(average)
    for name, mask in masks.items():
        if isinstance(mask, Mapping):
            if name in average:
                merged[name] = _overwrite(average[name], current[name], mask)
        elif name in average:
            merged[name] = jnp.where(mask, current[name], average[name])
    return merged

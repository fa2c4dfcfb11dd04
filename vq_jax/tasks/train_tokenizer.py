"""Training a tokenizer, phase by phase: what the loop of `train.py` has to know of it."""

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from rich.console import Console

from vq_jax import config as configs
from vq_jax.config import PHASES
from vq_jax.data.pipeline import eval_batches, train_batches
from vq_jax.data.sources import open_source
from vq_jax.errors import UserError
from vq_jax.interop.lpips import load_lpips
from vq_jax.interop.weights import differences, flat, listing, read_group
from vq_jax.losses import ADVERSARIAL, GENERATOR, RECONSTRUCTION
from vq_jax.models.perceptual import lpips
from vq_jax.tasks.evaluate_tokenizer import measure
from vq_jax.tasks.job import Job
from vq_jax.tokenizer import TrainedTokenizer, has_checkpoints, load
from vq_jax.training import parallel
from vq_jax.training.optim import make_optimizer, make_ramp
from vq_jax.training.report import stderr
from vq_jax.training.state import GanState
from vq_jax.training.steps import Phase, Recipe, init_state, initialise_codebook, train_step
from vq_jax.training.watch import TokenizerWatch


def make_phases(config: ConfigDict) -> list[Phase]:
    """The schedule: the phases of the config that are not empty, in order."""
    phases, start = [], 0
    lpips_from = PHASES.index(config.loss.perceptual_from)
    for i, name in enumerate(PHASES):
        steps = config.phases[name]
        phase = Phase(name, steps, start, perceptual=i >= lpips_from)
        if name == "autoencoder":
            phase = dataclasses.replace(phase, trains=("encoder", "decoder"), quantize=False)
        elif name == "quantizer":
            phase = dataclasses.replace(phase, trains=("quantizer",), perceptual=False)
        elif name == "adversarial":
            phase = dataclasses.replace(phase, adversarial=True)
        if steps:
            phases.append(phase)
        start += steps
    return phases


def make_recipe(config: ConfigDict) -> Recipe:
    """Modules, optimizers, losses and weights of a config."""
    loss, adversarial = config.loss, config.adversarial
    perceptual = None
    if loss.perceptual_weight:
        lpips_params = load_lpips(folder=config.start_from or None)

        def perceptual(a, b):
            return lpips(lpips_params, a, b)

    of_discriminator, of_generator = ADVERSARIAL[adversarial.loss]
    if adversarial.generator_loss:
        of_generator = GENERATOR[adversarial.generator_loss]
    pixel_loss, variance = RECONSTRUCTION[loss.reconstruction], loss.data_variance
    return Recipe(
        tokenizer=configs.make_tokenizer(config),
        discriminator=configs.make_discriminator(config),
        optimizer=make_optimizer(config.optim, sum(config.phases.values())),
        disc_optimizer=make_optimizer(config.disc_optim, max(1, config.phases.adversarial)),
        reconstruction=lambda prediction, target: pixel_loss(prediction, target) / variance,
        reconstruction_weight=loss.reconstruction_weight,
        codebook_weight=loss.codebook_weight,
        perceptual_weight=loss.perceptual_weight,
        perceptual=perceptual,
        perceptual_stride=loss.perceptual_stride,
        adversarial=(of_discriminator, of_generator),
        adversarial_weight=adversarial.weight,
        adaptive_limit=adversarial.adaptive_limit,
        disc_warmup=adversarial.warmup_steps,
        disc_ramp=adversarial.ramp_steps,
        r1_weight=adversarial.r1_weight,
        r1_every=adversarial.r1_every,
        lecam_weight=adversarial.lecam_weight,
        lecam_decay=adversarial.lecam_decay,
        ema_decay=config.ema_decay,
        anneal={name: make_ramp(*ramp) for name, ramp in config.anneal.items() if ramp},
    )


def _started(config: ConfigDict, workdir: Path, shapes: GanState) -> dict[str, Any]:
    """The weights that `config.start_from` names: `params`, `stats` and, where there are some that
    fit, the `discriminator`'s; {} where it names none, or the run has its own already."""
    if not config.start_from or has_checkpoints(workdir):
        return {}
    folder = Path(config.start_from)
    opened = load(folder)
    variables = jax.device_get(opened.variables)
    wanted = {"params": shapes.generator.params, **shapes.generator.stats}
    if lines := differences(flat(variables), flat(wanted)):
        if (sides := _scaled_attention(config, opened.config)) is not None:
            raise UserError(
                f"start_from={folder} has its attention at other levels: for images of "
                f"{config.data.resolution} pixels add --config.model.attn_resolutions={sides}"
            )
        raise UserError(f"start_from={folder} does not fit this config:" + listing(lines))
    judge = read_group(folder, "discriminator")
    if judge and differences(flat(judge), flat(shapes.discriminator.params)):
        stderr(
            f"the discriminator in {folder} is not this config's: training starts with a new one"
        )
        judge = {}
    stats = {name: tree for name, tree in variables.items() if name != "params"}
    return {"params": variables["params"], "stats": stats, "discriminator": judge}


def _scaled_attention(config: ConfigDict, before: ConfigDict) -> str | None:
    """`model.attn_resolutions` of another config at this one's resolution, if that differs."""
    if "attn_resolutions" not in config.model or "attn_resolutions" not in before.model:
        return None
    old, new = before.data.resolution, config.data.resolution
    sides = tuple(side * new // old for side in before.model.attn_resolutions)
    text = "(" + "".join(f"{side}," for side in sides) + ")"
    return f'"{text}"' if sides != tuple(config.model.attn_resolutions) else None


def networks(state: GanState) -> dict[str, Any]:
    """The params of a tokenizer's state, by network and group."""
    judge = state.discriminator.params
    generator = {"generator": state.generator.params}
    return generator | ({"discriminator": {"all": judge}} if judge else {})


def tokenizer_job(config: ConfigDict, workdir: Path, key: jax.Array) -> Job:
    """The training that a tokenizer's config describes.

    Args:
      config: checked.
      workdir: the run's folder.
      key: the params are drawn from it.
    """
    stride = config.loss.perceptual_stride if config.loss.perceptual_weight else 1
    parallel.check(config.parallel, config.data.batch_size, stride)
    splits = open_source(config.data, config.seed)
    if next(eval_batches(splits.val, config.data), None) is None:  # rather now than at the end
        raise UserError("no held-out image could be read: see data.val_fraction and the log")
    phases, recipe = make_phases(config), make_recipe(config)
    quantized_from = next((phase.start for phase in phases if phase.quantize), -1)

    def batches(together: int = 1) -> Any:
        return train_batches(
            splits.train,
            config.data,
            config.seed,
            jax.process_index(),
            jax.process_count(),
            together=together,
            place=partial(parallel.shard_batch, parallel=config.parallel),
        )

    def prepare(state: GanState, step: int, key: jax.Array) -> GanState:
        """Starts the codebook from the first batches, drawn anew so that training's place stays."""
        count = config.kmeans_batches
        if step != quantized_from or not count:
            return state
        body = partial(initialise_codebook, recipe=recipe, batches=count)
        first = parallel.compile_step(body, config.parallel, state)
        return first(state, next(batches(count)), key)[0]

    def watch(state: GanState, warn: Any) -> TokenizerWatch:
        quantizer = recipe.tokenizer.quantizer
        _, grid = configs.grids(config, recipe.tokenizer)
        codes = config.data.batch_size * math.prod(grid) // math.prod(quantizer.code_shape)
        return TokenizerWatch(config, codes, quantizer.num_codes, int(state.skipped), warn)

    def measured(state: GanState, console: Console) -> dict[str, Any]:
        variables = {"params": state.generator.ema_params, **state.generator.stats}
        variables = parallel.fetch(variables)
        if jax.process_index():
            return {}
        variables = jax.device_put(variables, jax.local_devices()[0])
        tokenizer = TrainedTokenizer(config, recipe.tokenizer, variables, int(state.step))
        return measure(tokenizer, splits.val, workdir, console)

    fresh = partial(init_state, recipe, image_shape=configs.image_shape(config))
    started = _started(config, workdir, jax.eval_shape(fresh, key))

    def init(key: jax.Array, started: dict[str, Any]) -> GanState:
        state = fresh(key)
        if not started:
            return state
        params, stats, judge = (started[name] for name in ("params", "stats", "discriminator"))
        copy = jax.tree.map(jnp.copy, params)
        generator = state.generator.replace(params=params, ema_params=copy, stats=stats)
        discriminator = state.discriminator
        if judge:
            discriminator = discriminator.replace(params=judge)
        return state.replace(generator=generator, discriminator=discriminator)

    return Job(
        config=config,
        workdir=workdir,
        phases=phases,
        splits=splits,
        batches=batches,
        init=lambda: parallel.make_state(init, key, started),
        step=lambda phase: partial(train_step, recipe=recipe, phase=phase),
        prepare=prepare,
        networks=networks,
        watch=watch,
        measure=measured,
        places={
            "originals over reconstructions": "reconstructions.png",
            "codebook: use and spread": "codebook.png",
        },
    )

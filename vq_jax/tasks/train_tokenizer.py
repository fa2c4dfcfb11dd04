"""The training run of a tokenizer, for the loop in `train.py`."""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vq_jax import config as configs
from vq_jax import modalities
from vq_jax.config import PHASES
from vq_jax.console import stderr
from vq_jax.errors import UserError
from vq_jax.interop.weights import differences, flat, listing, read_group
from vq_jax.losses import ADVERSARIAL, GENERATOR
from vq_jax.models import MODELS
from vq_jax.runs import find, has_checkpoints, load_tokenizer
from vq_jax.tasks.job import Job, check_held_out, training_batches
from vq_jax.tokenizer import TrainedTokenizer
from vq_jax.training import parallel
from vq_jax.training.optim import make_optimizer, make_ramp
from vq_jax.training.state import GanState
from vq_jax.training.steps import (
    Recipe,
    TokenizerPhase,
    init_state,
    initialise_codebook,
    train_step,
)
from vq_jax.training.watch import TokenizerWatch


def make_phases(config: ConfigDict) -> list[TokenizerPhase]:
    """Returns the schedule: the phases of the config that are not empty, in order."""
    phases, start = [], 0
    perceptual_from = PHASES.index(config.loss.get("perceptual_from", PHASES[0]))
    for i, name in enumerate(PHASES):
        steps = config.phases[name]
        phase = TokenizerPhase(name, steps, start, perceptual=i >= perceptual_from)
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
    """Makes the modules, optimizers and losses of a config."""
    loss, adversarial = config.loss, config.adversarial
    modality = modalities.of(config)
    start = find(config.start_from) if config.start_from else None
    of_discriminator, of_generator = ADVERSARIAL[adversarial.loss]
    if adversarial.generator_loss:
        of_generator = GENERATOR[adversarial.generator_loss]
    reconstruction, variance = modality.losses[loss.reconstruction], loss.data_variance
    return Recipe(
        tokenizer=configs.make_tokenizer(config),
        discriminator=configs.make_discriminator(config),
        optimizer=make_optimizer(config.optim, sum(config.phases.values())),
        disc_optimizer=make_optimizer(config.disc_optim, max(1, config.phases.adversarial)),
        reconstruction=lambda prediction, target: reconstruction(prediction, target) / variance,
        reconstruction_weight=loss.reconstruction_weight,
        codebook_weight=loss.codebook_weight,
        quality_power=loss.quality_power,
        perceptual_weight=loss.get("perceptual_weight", 0.0),
        perceptual=modality.perceptual(config, start),
        perceptual_stride=loss.get("perceptual_stride", 1),
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


def _initial_weights(config: ConfigDict, workdir: Path, shapes: GanState) -> dict[str, Any]:
    """Reads the weights that `config.start_from` names.

    Returns:
      `params`, `stats` and `discriminator`; {} if it names none, or the run has a checkpoint. The
      discriminator is {} if there is none that fits.
    """
    if not config.start_from or has_checkpoints(workdir):
        return {}
    folder = find(config.start_from)
    opened = load_tokenizer(folder)
    wanted = {"params": shapes.generator.params, **shapes.generator.stats}
    variables = MODELS[config.model.name].start_from(jax.device_get(opened.variables), wanted)
    expected = flat(wanted)
    if opened.config.model.name != config.model.name and not variables.keys() >= wanted.keys():
        # The model has said which part of another one it takes.
        expected = {k: v for k, v in expected.items() if k in flat(variables)}
    if lines := differences(flat(variables), expected):
        if (sides := _scaled_attention(config, opened.config)) is not None:
            raise UserError(
                f"start_from={folder} has attention at other levels: for images of "
                f"{config.data.resolution} pixels set model.attn_resolutions={sides}"
            )
        raise UserError(f"start_from={folder} does not fit this config:" + listing(lines))
    discriminator = read_group(folder, "discriminator")
    if discriminator and differences(flat(discriminator), flat(shapes.discriminator.params)):
        stderr(
            f"the discriminator in {folder} does not fit this config: training starts with a new one"
        )
        discriminator = {}
    stats = {name: tree for name, tree in variables.items() if name != "params"}
    return {"params": variables["params"], "stats": stats, "discriminator": discriminator}


def _replaced(tree: Any, part: Any) -> Any:
    """Returns nested dicts with the leaves that `part` has."""
    if not isinstance(part, Mapping):
        return part
    return tree | {name: _replaced(tree[name], leaf) for name, leaf in part.items()}


def _scaled_attention(config: ConfigDict, before: ConfigDict) -> str | None:
    """Scales `model.attn_resolutions` of another config to this one's resolution; None if it fits."""
    if "attn_resolutions" not in config.model or "attn_resolutions" not in before.model:
        return None
    old, new = before.data.resolution, config.data.resolution
    sides = tuple(side * new // old for side in before.model.attn_resolutions)
    text = "(" + "".join(f"{side}," for side in sides) + ")"
    return f'"{text}"' if sides != tuple(config.model.attn_resolutions) else None


def networks(state: GanState) -> dict[str, Any]:
    """Returns the params of a tokenizer's state, by network and group."""
    discriminator = state.discriminator.params
    generator = {"generator": state.generator.params}
    return generator | ({"discriminator": {"all": discriminator}} if discriminator else {})


def tokenizer_job(config: ConfigDict, workdir: Path, key: jax.Array) -> Job:
    """Makes the training run of a tokenizer's config.

    It is one function because the parts of the job are closures over the data and the recipe.

    Args:
      config: checked.
      workdir: the run's folder.
      key: initialises the params.
    """
    phases, recipe = make_phases(config), make_recipe(config)
    modality = modalities.of(config)
    stride = recipe.perceptual_stride if recipe.perceptual_weight else 1
    parallel.check(config.parallel, config.data.batch_size, stride)
    splits = modalities.open_source(config)
    check_held_out(config, splits.val)  # fail early
    quantized_from = next((phase.start for phase in phases if phase.quantize), -1)

    def before_step(state: GanState, step: int, key: jax.Array) -> GanState:
        """Initialises the codebook from the first batches, with an iterator of its own."""
        count = config.kmeans_batches
        if step != quantized_from or not count:
            return state
        body = partial(initialise_codebook, recipe=recipe, batches=count)
        first = parallel.compile_step(body, config.parallel, state)
        return first(state, next(training_batches(config, splits.train, count)), key)[0]

    def watch(state: GanState, warn: Any) -> TokenizerWatch:
        quantizer = recipe.tokenizer.quantizer
        spec, _ = configs.code_spec(config, recipe.tokenizer)
        codes = config.data.batch_size * math.prod(spec.grid)
        return TokenizerWatch(config, codes, quantizer.num_codes, int(state.skipped), warn)

    def model(state: GanState) -> TrainedTokenizer | None:
        variables = {"params": state.generator.ema_params, **state.generator.stats}
        variables = parallel.fetch(variables)
        if jax.process_index():
            return None
        variables = jax.device_put(variables, jax.local_devices()[0])
        return TrainedTokenizer(config, recipe.tokenizer, variables, int(state.step))

    fresh = partial(init_state, recipe, spec=configs.spec_of(config))
    weights = _initial_weights(config, workdir, jax.eval_shape(fresh, key))

    def init(key: jax.Array, weights: dict[str, Any]) -> GanState:
        state = fresh(key)
        if not weights:
            return state
        params = _replaced(state.generator.params, weights["params"])
        stats = state.generator.stats | weights["stats"]
        copy = jax.tree.map(jnp.copy, params)
        generator = state.generator.replace(params=params, ema_params=copy, stats=stats)
        discriminator = state.discriminator
        if weights["discriminator"]:
            discriminator = discriminator.replace(params=weights["discriminator"])
        return state.replace(generator=generator, discriminator=discriminator)

    return Job(
        config=config,
        workdir=workdir,
        phases=phases,
        splits=splits,
        batches=lambda: training_batches(config, splits.train),
        init=lambda: parallel.make_state(init, key, weights),
        step=lambda phase: partial(train_step, recipe=recipe, phase=phase),
        before_step=before_step,
        networks=networks,
        watch=watch,
        model=model,
        files={
            "originals over reconstructions": f"reconstructions{modality.preview_suffix}",
            "use of the codebook": "codebook.png",
        },
    )

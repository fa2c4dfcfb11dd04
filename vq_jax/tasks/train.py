"""Trains a tokenizer, phase by phase, and measures it."""

import dataclasses
import importlib.util
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vq_jax import config as configs
from vq_jax.config import PHASES
from vq_jax.data.pipeline import eval_batches, train_batches
from vq_jax.data.sources import Source, open_source
from vq_jax.errors import UserError
from vq_jax.losses import ADVERSARIAL, RECONSTRUCTION
from vq_jax.models.perceptual import load_lpips, lpips
from vq_jax.tasks.evaluate import measure
from vq_jax.tokenizer import TrainedTokenizer
from vq_jax.training import parallel
from vq_jax.training.checkpoint import Checkpoints
from vq_jax.training.optim import make_optimizer
from vq_jax.training.report import (
    Report,
    make_console,
    plot_curves,
    print_parameters,
    read_lines,
)
from vq_jax.training.state import GanState, join, split
from vq_jax.training.steps import Phase, Recipe, init_state, initialise_codebook, train_step

_INIT = 2**32 - 1  # folded into the key for the first params; no step ever has this number


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
        lpips_params = load_lpips()

        def perceptual(a, b):
            return lpips(lpips_params, a, b)

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
        adversarial=ADVERSARIAL[adversarial.loss],
        adversarial_weight=adversarial.weight,
        adaptive_limit=adversarial.adaptive_limit,
        disc_warmup=adversarial.warmup_steps,
        disc_ramp=adversarial.ramp_steps,
        r1_weight=adversarial.r1_weight,
        r1_every=adversarial.r1_every,
        lecam_weight=adversarial.lecam_weight,
        lecam_decay=adversarial.lecam_decay,
        ema_decay=config.ema_decay,
    )


def train(config: ConfigDict, workdir: Path, *, profile: bool = False) -> None:
    """`--mode=train`: trains from the newest checkpoint in `workdir`, or from the start.

    Args:
      config: checked.
      workdir: gets config.json, checkpoints/, metrics.jsonl, the figures and the pictures.
      profile: write a trace of ten steps to `workdir`/profile.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file: name a folder")
    parallel.check(config.parallel, config.data.batch_size, config.loss.perceptual_stride)
    splits = open_source(config.data, config.seed)
    if next(eval_batches(splits.val, config.data), None) is None:  # rather now than at the end
        raise UserError("no held-out image could be read: see data.val_fraction and the log")
    share = (jax.process_index(), jax.process_count())
    iterator = train_batches(splits.train, config.data, config.seed, *share)
    phases, recipe = make_phases(config), make_recipe(config)
    total = sum(phase.steps for phase in phases)

    key = jax.random.key(config.seed)
    shape = (config.data.resolution, config.data.resolution, config.data.channels)
    init = partial(init_state, recipe, image_shape=shape)
    state = parallel.replicate(parallel.run_once(init, jax.random.fold_in(key, _INIT)))

    say = make_console().print
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"--workdir={workdir} cannot be made: {e}") from e
    with Checkpoints(workdir / "checkpoints", config.keep) as checkpoints:
        start, changes = checkpoints.latest_step() or 0, []
        if start:
            say(f"{workdir} is at step {start} of {total}")
            if changes := _check_resume(config, workdir):
                say("the config has changed since: " + ", ".join(changes))
            state = join(checkpoints.restore(start, split(state), iterator))
        if start >= total and _evaluated_step(workdir) == start:
            if changes:
                raise UserError(
                    f"{workdir} is finished, with another config ({', '.join(changes)}): "
                    "take another --workdir"
                )
            say("it is finished: use another --workdir, or longer phases, to train more")
            return
        report = Report(
            workdir,
            total,
            start,
            tensorboard=config.tensorboard,
            wandb=config.wandb,
            wandb_config=config.to_dict(),
        )
        try:
            if report.active:
                configs.save(config, workdir / "config.json")
            if not start:
                counts = f"{len(splits.train):,} images to train on, {len(splits.val):,} held out"
                report.console.print(counts)
                print_parameters(report.console, "generator", state.generator.params)
                if state.discriminator.params:
                    print_parameters(
                        report.console, "discriminator", {"all": state.discriminator.params}
                    )
            state = _run(
                config, workdir, phases, recipe, state, key, iterator, checkpoints, report,
                splits, profile,
            )  # fmt: skip
        finally:
            report.close()
    _finish(config, workdir, recipe, state, splits.val, report)


def _check_resume(config: ConfigDict, workdir: Path) -> list[str]:
    """Lists what has changed since the run began; refuses what its checkpoint cannot follow."""
    saved = workdir / "config.json"
    if not saved.exists():
        return []
    before = configs.load(saved)
    for field in ("source", "workers"):
        if before.data[field] != config.data[field]:
            raise UserError(
                f"{workdir} was trained with data.{field}={before.data[field]}, and its place in "
                f"the data fits no other: keep that, or take another --workdir"
            )
    return configs.differences(before, config)


def _evaluated_step(workdir: Path) -> int:
    """The step the figures in a run's folder are of, or -1."""
    path = workdir / "evaluation.json"
    return json.loads(path.read_text()).get("step", -1) if path.exists() else -1


def _run(
    config: ConfigDict,
    workdir: Path,
    phases: list[Phase],
    recipe: Recipe,
    state: GanState,
    key: jax.Array,
    iterator: Any,
    checkpoints: Checkpoints,
    report: Report,
    splits: Any,
    profile: bool,
) -> GanState:
    """The loop: save, next batch, step; each step's metrics are read while the next one runs."""
    first = int(state.step)
    total = phases[-1].start + phases[-1].steps
    profiled = range(first + 10, min(first + 20, total)) if profile else range(0)
    quantized_from = next((phase.start for phase in phases if phase.quantize), -1)
    wait = 0.0
    pending: tuple[int, str, dict[str, jax.Array]] | None = None

    def settle() -> None:
        nonlocal pending, wait
        if pending is None:
            return
        done, name, metrics = pending
        pending = None
        log = done % config.log_every == 0 or done == total
        report.step(done, name, jax.device_get(metrics), config.data.batch_size, wait, log)
        wait = 0.0 if log else wait

    for phase in phases:
        if first >= phase.start + phase.steps:
            continue
        compiled = parallel.compile_step(
            partial(train_step, recipe=recipe, phase=phase), config.parallel
        )
        for step in range(max(first, phase.start), phase.start + phase.steps):
            if step == quantized_from:
                state = _initialise(config, recipe, state, key, splits.train)
            if step % config.save_every == 0 and step > first:
                settle()  # a line that is not written before the checkpoint would never be
                checkpoints.save(step, split(state), iterator)
            if step in profiled and step == profiled[0]:
                jax.profiler.start_trace(str(workdir / "profile"))
            asked = time.perf_counter()
            batch = parallel.shard_batch(next(iterator), config.parallel)
            wait += time.perf_counter() - asked
            state, metrics = compiled(state, batch, key)
            settle()
            pending = (step + 1, phase.name, metrics)
            if step in profiled and step == profiled[-1]:
                jax.block_until_ready(state)
                jax.profiler.stop_trace()
                report.console.print(
                    f"a trace of {len(profiled)} steps is in {workdir / 'profile'}"
                )
            if config.eval_every and (step + 1) % config.eval_every == 0 and step + 1 < total:
                settle()
                figures = _measure(config, workdir, recipe, state, splits.val, report)
                report.write(step + 1, {f"val_{k}": float(v) for k, v in figures.items()})
                report.restart_clock(step + 1)
    settle()
    if total > first:
        checkpoints.save(total, split(state), iterator)
    return state


def _initialise(
    config: ConfigDict, recipe: Recipe, state: GanState, key: jax.Array, source: Source
) -> GanState:
    """Starts the codebook from the first batches, drawn anew so that training's place stays."""
    if not config.kmeans_batches:
        return state
    share = (jax.process_index(), jax.process_count())
    batches = train_batches(source, config.data, config.seed, *share)
    drawn = [next(batches) for _ in range(config.kmeans_batches)]
    batch = {"image": np.concatenate([b["image"] for b in drawn])}
    step = parallel.compile_step(
        partial(initialise_codebook, recipe=recipe, batches=len(drawn)), config.parallel
    )
    return step(state, parallel.shard_batch(batch, config.parallel), key)[0]


def _measure(
    config: ConfigDict, workdir: Path, recipe: Recipe, state: GanState, val: Source, report: Report
) -> dict[str, Any]:
    if not report.active:
        return {}
    variables = {"params": state.generator.ema_params, **state.generator.stats}
    variables = jax.device_put(jax.device_get(variables), jax.local_devices()[0])
    tokenizer = TrainedTokenizer(config, recipe.tokenizer, variables, int(state.step))
    return measure(tokenizer, val, workdir, report.console)


def _finish(
    config: ConfigDict, workdir: Path, recipe: Recipe, state: GanState, val: Source, report: Report
) -> None:
    """Figures, pictures, and where everything lies."""
    if not report.active:
        return
    _measure(config, workdir, recipe, state, val, report)
    plot_curves(workdir / "metrics.jsonl", workdir / "curves.png")
    lines = [line for line in read_lines(workdir / "metrics.jsonl") if "data_wait" in line]
    if lines:
        waits = float(np.median([line["data_wait"] for line in lines]))
        report.console.print(f"the step waited for data {waits:.1%} of the time (median)")
    places = {
        "checkpoints": "checkpoints/",
        "config": "config.json",
        "metrics of each logged step": "metrics.jsonl",
        "held-out figures": "evaluation.json",
        "originals over reconstructions": "reconstructions.png",
        "loss curves": "curves.png",
        "codebook usage": "codebook_usage.png",
    }
    if config.tensorboard and importlib.util.find_spec("tensorboardX"):
        places["TensorBoard"] = "tensorboard/"
    for what, name in places.items():
        report.console.print(f"{what:<32}{workdir / name}")

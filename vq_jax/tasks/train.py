"""Trains a tokenizer, phase by phase, and measures it."""

import dataclasses
import importlib.util
import json
import math
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
from vq_jax.data.sources import Source, Splits, open_source
from vq_jax.errors import UserError
from vq_jax.losses import ADVERSARIAL, RECONSTRUCTION
from vq_jax.models.perceptual import load_lpips, lpips
from vq_jax.tasks.evaluate import measure
from vq_jax.tokenizer import TrainedTokenizer
from vq_jax.training import parallel
from vq_jax.training.checkpoint import Checkpoints
from vq_jax.training.optim import make_optimizer, make_ramp
from vq_jax.training.report import (
    Report,
    make_console,
    plot_curves,
    print_parameters,
    read_lines,
)
from vq_jax.training.state import GanState, join, split
from vq_jax.training.steps import Phase, Recipe, init_state, initialise_codebook, train_step
from vq_jax.training.watch import Watch

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
        anneal={name: make_ramp(*ramp) for name, ramp in config.anneal.items() if ramp},
    )


@dataclasses.dataclass(frozen=True)
class _Run:
    """What the parts of one training share."""

    config: ConfigDict
    workdir: Path
    splits: Splits
    phases: list[Phase]
    recipe: Recipe
    key: jax.Array
    iterator: Any
    checkpoints: Checkpoints
    report: Report

    @property
    def total(self) -> int:
        return sum(self.config.phases.values())


def train(config: ConfigDict, workdir: Path, *, profile: bool = False) -> None:
    """`--mode=train`: trains from the newest checkpoint in `workdir`, or from the start.

    SIGTERM saves a checkpoint and returns; the same call goes on from it.

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
    iterator = _batches(config, splits.train)
    phases, recipe = make_phases(config), make_recipe(config)
    total = sum(config.phases.values())

    key = jax.random.key(config.seed)
    init = partial(init_state, recipe, image_shape=configs.image_shape(config))
    state = parallel.replicate(parallel.run_once(init, jax.random.fold_in(key, _INIT)))

    say = make_console().print
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"--workdir={workdir} cannot be made: {e}") from e
    with (
        parallel.Preemption() as preemption,
        Checkpoints(workdir / "checkpoints", config.keep) as checkpoints,
    ):
        start, changes = 0, []
        if checkpoints.latest_step():
            changes = _check_resume(config, workdir)
            start, parts = checkpoints.restore(split(state), iterator)
            state = join(parts)
            say(f"{workdir} is at step {start} of {total}")
            if changes:
                say("the config has changed since: " + ", ".join(changes))
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
        run = _Run(
            config, workdir, splits, phases, recipe, key, iterator, checkpoints, report
        )  # fmt: skip
        try:
            if report.active:
                configs.save(config, workdir / "config.json")
            if not start:
                counts = f"{len(splits.train):,} images to train on, {len(splits.val):,} held out"
                report.console.print(counts)
                print_parameters(report.console, state)
            state, stopped = _loop(run, state, preemption, profile)
        finally:
            report.close()
    if not stopped:
        _finish(run, state)


def _batches(config: ConfigDict, source: Source, together: int = 1) -> Any:
    """This process's share of the training batches, on its devices."""
    return train_batches(
        source,
        config.data,
        config.seed,
        jax.process_index(),
        jax.process_count(),
        together=together,
        place=partial(parallel.shard_batch, parallel=config.parallel),
    )


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


def _loop(
    run: _Run, state: GanState, preemption: parallel.Preemption, profile: bool
) -> tuple[GanState, bool]:
    """Save, next batch, step; each step's metrics are read while the next one runs.

    Returns:
      the state at the end, or where SIGTERM stopped it; whether it did. Either is saved, unless the
      last steps were not finite.
    """
    config, report, checkpoints, total = run.config, run.report, run.checkpoints, run.total
    step = saved = int(state.step)
    profiled = range(step + 10, min(step + 20, total)) if profile else range(0)
    quantized_from = next((phase.start for phase in run.phases if phase.quantize), -1)
    watch = _watch(run, state)
    compiled: dict[str, Any] = {}
    wait = 0.0
    tracing = False
    went_back = -1
    pending: tuple[int, Phase, dict[str, jax.Array]] | None = None

    def settle() -> None:
        """Reads the metrics of the step before."""
        nonlocal pending, wait
        if pending is None:
            return
        done, phase, on_device = pending
        pending = None
        metrics = jax.device_get(on_device)
        watch.step(done, phase, metrics)
        log = done % config.log_every == 0 or done == total
        report.step(done, phase.name, metrics, config.data.batch_size, wait, log)
        wait = 0.0 if log else wait

    def save() -> None:
        nonlocal saved
        checkpoints.save(step, split(state), run.iterator)
        saved = step

    while step < total:
        phase = next(p for p in run.phases if step < p.start + p.steps)
        if phase.name not in compiled:
            body = partial(train_step, recipe=run.recipe, phase=phase)
            compiled[phase.name] = parallel.compile_step(body, config.parallel)
        if step == quantized_from:
            state = _initialise(run, state)
        stop = preemption.asked(step)
        if step > saved and (stop or step % config.save_every == 0):
            settle()  # a line that is not written before the checkpoint would never be
            if not watch.streak:
                save()
        if stop:
            if tracing:
                jax.profiler.stop_trace()
            report.console.print(
                f"stopped by SIGTERM at step {step}: the same command goes on from step {saved}"
            )
            return state, True
        if step in profiled and step == profiled[0] and not tracing:
            jax.profiler.start_trace(str(run.workdir / "profile"))
            tracing = True
        asked = time.perf_counter()
        batch = next(run.iterator)
        wait += time.perf_counter() - asked
        state, metrics = compiled[phase.name](state, batch, run.key)
        settle()
        if watch.streak >= config.skip_limit:
            # Nothing has been saved since the last time: that checkpoint is not to be trusted.
            before = saved if went_back == saved else None
            state = _go_back(run, state, step, before)
            step = saved = went_back = int(state.step)
            watch = _watch(run, state)
            report.rewind(step)
            continue
        step += 1
        pending = (step, phase, metrics)
        if tracing and step - 1 == profiled[-1]:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            tracing = False
            trace = run.workdir / "profile"
            report.console.print(f"a trace of {len(profiled)} steps is in {trace}")
        if config.eval_every and step % config.eval_every == 0 and step < total:
            settle()
            figures = _measure(run, state)
            report.write(step, {f"val_{k}": float(v) for k, v in figures.items()})
            report.restart_clock(step)
    settle()
    if step > saved:
        save()
    return state, False


def _watch(run: _Run, state: GanState) -> Watch:
    config, tokenizer = run.config, run.recipe.tokenizer
    _, grid = configs.grids(config, tokenizer)
    num_codes, books = tokenizer.quantizer.num_codes, math.prod(tokenizer.quantizer.code_shape)
    codes = config.data.batch_size * math.prod(grid) // books
    return Watch(config, codes, num_codes, int(state.skipped), run.report.warn)


def _go_back(run: _Run, state: GanState, step: int, before: int | None) -> GanState:
    """The last checkpoint's state (before step `before`), after too many steps not finite.

    The data goes on where it is: the same batches would end the same way.
    """
    config, checkpoints = run.config, run.checkpoints
    what = f"{config.skip_limit} steps in a row up to step {step} were not finite"
    turn = (
        f"lower optim.lr (now {config.optim.lr}) or set optim.clip_norm (now "
        f"{config.optim.clip_norm})"
    )
    if not any(before is None or saved < before for saved in checkpoints.steps()):
        raise UserError(f"training has diverged: {what}, and no checkpoint is left; {turn}")
    step, parts = checkpoints.restore(split(state), before=before)
    run.report.warn(f"{what}: back to step {step}, with other batches; if it comes again, {turn}")
    return join(parts)


def _initialise(run: _Run, state: GanState) -> GanState:
    """Starts the codebook from the first batches, drawn anew so that training's place stays."""
    config = run.config
    count = config.kmeans_batches
    if not count:
        return state
    batch = next(_batches(config, run.splits.train, together=count))
    step = parallel.compile_step(
        partial(initialise_codebook, recipe=run.recipe, batches=count), config.parallel
    )
    return step(state, batch, run.key)[0]


def _measure(run: _Run, state: GanState) -> dict[str, Any]:
    if not run.report.active:
        return {}
    variables = {"params": state.generator.ema_params, **state.generator.stats}
    variables = jax.device_put(jax.device_get(variables), jax.local_devices()[0])
    tokenizer = TrainedTokenizer(run.config, run.recipe.tokenizer, variables, int(state.step))
    return measure(tokenizer, run.splits.val, run.workdir, run.report.console)


def _finish(run: _Run, state: GanState) -> None:
    """Figures, pictures, and where everything lies."""
    config, report, workdir = run.config, run.report, run.workdir
    if not report.active:
        return
    plot_curves(workdir / "metrics.jsonl", workdir / "curves.png")
    _measure(run, state)
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
        "codebook: use and spread": "codebook.png",
    }
    if config.tensorboard and importlib.util.find_spec("tensorboardX"):
        places["TensorBoard"] = "tensorboard/"
    for what, name in places.items():
        report.console.print(f"{what:<32}{workdir / name}")

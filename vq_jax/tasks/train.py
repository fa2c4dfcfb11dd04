"""Trains a tokenizer or a prior, from its newest checkpoint or from scratch, and evaluates it."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vq_jax import config as configs
from vq_jax import modalities
from vq_jax.codec import counts
from vq_jax.errors import UserError
from vq_jax.files import ships
from vq_jax.runs import find, in_one_file
from vq_jax.tasks.evaluate import measure
from vq_jax.tasks.job import Evaluation, Job
from vq_jax.tasks.kinds import KINDS
from vq_jax.training import parallel
from vq_jax.training.checkpoint import Checkpoints
from vq_jax.training.report import (
    Report,
    make_console,
    plot_curves,
    print_parameters,
    read_lines,
)
from vq_jax.training.steps import Phase

_INIT = 2**32 - 1  # folded into the key for the initial params; no step has this number


@dataclasses.dataclass(frozen=True)
class _Run:
    """What the parts of one training run share."""

    job: Job
    key: jax.Array
    iterator: Any
    checkpoints: Checkpoints
    report: Report


def train(
    config: ConfigDict,
    workdir: Path,
    *,
    profile: bool = False,
    distributed: bool = False,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """`--mode=train`: trains from the newest checkpoint in `workdir`, or from scratch.

    SIGTERM saves a checkpoint and returns. Ctrl-C saves one and raises `KeyboardInterrupt`. The same call
    then continues from it.

    Args:
      config: the run's config.
      workdir: gets config.json, checkpoints/, metrics.jsonl, figures and pictures.
      profile: whether to write a trace of ten steps to `workdir`/profile.
      distributed: whether this is one of several processes.
      coordinator, processes, process: see `parallel.join_processes`.
    """
    kind = KINDS[configs.kind_of(config)]
    kind.before_training()
    if distributed:
        parallel.join_processes(coordinator, processes, process)
    elif not (coordinator is processes is process is None):
        raise UserError("coordinator, processes and process need distributed")
    configs.check(config)
    modalities.check_folder(modalities.of(config), config.data)
    if not workdir.exists() and ships(find(workdir)):
        raise UserError(f"workdir: {workdir} is the name of a model that ships; use another folder")
    _check_writable(workdir)
    key = jax.random.key(config.seed)
    job = kind.job(config, workdir, jax.random.fold_in(key, _INIT))
    state = job.init()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"workdir: {workdir} cannot be made: {e.strerror}") from e
    with (
        parallel.Preemption() as preemption,
        contextlib.closing(job.batches()) as iterator,
        Checkpoints(workdir / "checkpoints", config.keep) as checkpoints,
    ):
        state, start, finished = _resume(job, state, iterator, checkpoints)
        if finished:
            return
        report = Report(
            workdir,
            job.total,
            start,
            tensorboard=config.tensorboard,
            wandb=config.wandb,
            wandb_config=config.to_dict(),
            noun=modalities.of(config).noun,
        )
        run = _Run(job, key, iterator, checkpoints, report)
        try:
            if report.active:
                configs.save(config, workdir / configs.FILE)
            if not start:
                _print_start(run, state)
            state, stopped = _loop(run, state, preemption, profile)
        finally:
            report.close()
    if preemption.interrupted:
        raise KeyboardInterrupt(stopped)
    if not stopped:
        _finish(run, state)


def _resume(job: Job, state: Any, iterator: Any, checkpoints: Checkpoints) -> tuple[Any, int, bool]:
    """Restores the newest checkpoint, if there is one.

    Returns:
      the state, the step to start from, and whether the run is finished and evaluated.

    Raises:
      UserError: the checkpoint is not of this run, or a finished run has another config.
    """
    config, workdir, write_line = job.config, job.workdir, make_console().print
    if not checkpoints.latest_step():
        return state, 0, False
    changes = _check_resume(config, workdir)
    start, parts = checkpoints.restore(state.split(), iterator)
    state = state.join(parts)
    job.check(state)
    write_line(f"{workdir} is at step {start} of {job.total}")
    if changes:
        write_line("the config has changed since: " + ", ".join(changes))
    if start >= job.total and _evaluated_step(workdir) == start:
        if changes:
            raise UserError(
                f"{workdir} is finished, with another config ({', '.join(changes)}): "
                "use another workdir"
            )
        write_line("it is finished: use another workdir, or longer phases, to train more")
        return state, start, True
    if start < job.total and (workdir / counts.FILE).exists():
        write_line(
            f"warning: {workdir} has compressed files ({counts.FILE}), which its model cannot read "
            "once it is trained further: copy the folder to keep this model"
        )
    return state, start, False


def _check_writable(workdir: Path) -> None:
    """Raises UserError if a run's folder cannot be written, before the data are prepared."""
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"workdir: {workdir} is a file; name a folder")
    if in_one_file(workdir):
        raise UserError(
            f"workdir: {workdir} holds an import or export: name another folder, and set "
            f"start_from={workdir} to train it further"
        )
    nearest = next(p for p in (workdir, *workdir.absolute().parents) if p.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise UserError(f"workdir: {workdir} cannot be written in {nearest}; name another folder")


def _print_start(run: _Run, state: Any) -> None:
    """Prints the sizes of the data and of the networks."""
    job, config, console = run.job, run.job.config, run.report.console
    noun = modalities.of(config).noun
    place = f"{config.data.source} {config.data.folder}".strip()
    sizes = len(job.splits.train), len(job.splits.val)
    console.print(f"{sizes[0]:,} training {noun}s, {sizes[1]:,} held out: {place}")
    print_parameters(console, job.networks(state))


def _check_resume(config: ConfigDict, workdir: Path) -> list[str]:
    """Lists what has changed in the config since the run began.

    Raises:
      UserError: the checkpoint does not fit the change.
    """
    saved = workdir / configs.FILE
    if not saved.exists():
        return []
    before = configs.load(saved)
    kinds = configs.kind_of(before), configs.kind_of(config)
    if kinds[0] != kinds[1]:
        raise UserError(f"{workdir} holds a {kinds[0]}: use another workdir for a {kinds[1]}")
    for field in ("source", "workers"):
        if before.data[field] != config.data[field]:
            raise UserError(
                f"{workdir} was trained with data.{field}={before.data[field]}, and its position in "
                f"the data needs the same: keep it, or use another workdir"
            )
    return configs.differences(before, config)


def _evaluated_step(workdir: Path) -> int:
    """The step of the figures in a run's folder, or -1."""
    path = workdir / "evaluation.json"
    return json.loads(path.read_text()).get("step", -1) if path.exists() else -1


def _loop(run: _Run, state: Any, preemption: parallel.Preemption, profile: bool) -> tuple[Any, str]:
    """Runs save, next batch, step; the metrics of a step are read while the next one runs.

    It is one function because the order of its parts decides whether a resumed run equals an
    uninterrupted one.

    Returns:
      the state at the end, or when a signal stopped it, and the message about the stop, or "". The
      state is saved, unless the last steps were skipped.
    """
    job, report, checkpoints = run.job, run.report, run.checkpoints
    config, total = job.config, job.total
    step = saved = int(state.step)
    profiled = range(step + 10, min(step + 20, total)) if profile else range(0)
    watch = job.watch(state, report.warn)
    compiled: dict[str, Any] = {}
    wait = 0.0
    tracing = False
    went_back = -1
    pending: tuple[int, Phase, dict[str, jax.Array]] | None = None

    def flush_metrics() -> None:
        """Reads the metrics of the previous step."""
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
        checkpoints.save(step, state.split(), run.iterator)
        saved = step

    while step < total:
        phase = next(p for p in job.phases if step < p.start + p.steps)
        if phase.name not in compiled:
            body = job.step(phase)
            compiled[phase.name] = parallel.compile_step(body, config.parallel, state)
        state = job.before_step(state, step, run.key)
        stop = preemption.asked(step)
        if step > saved and (stop or step % config.save_every == 0):
            flush_metrics()  # a resumed run does not write the lines before its checkpoint
            if not watch.streak:
                save()
        if stop:
            if tracing:
                jax.profiler.stop_trace()
            message = (
                f"stopped by {preemption.asked_by} at step {step}: the same command continues from "
                f"step {saved}"
            )
            report.console.print(message)
            return state, message
        if step in profiled and step == profiled[0] and not tracing:
            jax.profiler.start_trace(str(job.workdir / "profile"))
            tracing = True
        before = time.perf_counter()
        batch = next(run.iterator)
        wait += time.perf_counter() - before
        state, metrics = compiled[phase.name](state, batch, run.key)
        flush_metrics()
        if watch.streak >= config.skip_limit:
            # If nothing was saved since the last time, that checkpoint leads here again.
            earlier_than = saved if went_back == saved else None
            state = _go_back(run, state, step, earlier_than)
            step = saved = went_back = int(state.step)
            watch = job.watch(state, report.warn)
            report.rewind(step)
            continue
        step += 1
        pending = (step, phase, metrics)
        if tracing and step - 1 == profiled[-1]:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            tracing = False
            trace = job.workdir / "profile"
            report.console.print(f"a trace of {len(profiled)} steps is in {trace}")
        if config.eval_every and step % config.eval_every == 0 and step < total:
            flush_metrics()
            figures = _measure(run, state)
            numbers = {k: v for k, v in figures.items() if isinstance(v, int | float)}
            report.write(step, {f"val_{k}": float(v) for k, v in numbers.items()})
            report.restart_clock(step)
    flush_metrics()
    if step > saved:
        save()
    if preemption.asked(step):
        message = f"stopped by {preemption.asked_by} at the end: the same command evaluates the run"
        report.console.print(message)
        return state, message
    return state, ""


def _measure(run: _Run, state: Any) -> dict[str, Any]:
    """Evaluates the state; all processes call it, and the first one computes and returns figures."""
    job = run.job
    model = job.model(state)
    if model is None:
        return {}
    with_sets = KINDS[configs.kind_of(job.config)].sets_in_training and job.config.eval_samples
    networks = model.modality.networks() if with_sets else []
    return measure(Evaluation(model, job.splits, job.workdir, run.report.console, networks))


def _go_back(run: _Run, state: Any, step: int, before: int | None) -> Any:
    """Returns the state of the last checkpoint (before step `before`), after too many skipped steps.

    The data continues where it is, since the same batches would lead to the same result.
    """
    config, checkpoints = run.job.config, run.checkpoints
    problem = f"{config.skip_limit} steps in a row up to step {step} were NaN or infinite"
    advice = (
        f"lower optim.lr (now {config.optim.lr}) or set optim.clip_norm (now "
        f"{config.optim.clip_norm})"
    )
    if not any(before is None or saved < before for saved in checkpoints.steps()):
        raise UserError(f"training has diverged: {problem}, and no checkpoint is left; {advice}")
    step, parts = checkpoints.restore(state.split(), before=before)
    run.report.warn(
        f"{problem}: back to step {step}, with other batches; if it happens again, {advice}"
    )
    return state.join(parts)


def _finish(run: _Run, state: Any) -> None:
    """Evaluates the run, draws the curves, and prints where everything is."""
    job, report = run.job, run.report
    workdir = job.workdir
    if report.active:
        plot_curves(workdir / "metrics.jsonl", workdir / "curves.png")
        report.console.print("evaluating on the held-out split")
    _measure(run, state)
    if not report.active:
        return
    lines = [line for line in read_lines(workdir / "metrics.jsonl") if "data_wait" in line]
    if lines:
        waits = float(np.median([line["data_wait"] for line in lines]))
        report.console.print(f"the step waited for data {waits:.1%} of the time (median)")
    written = {
        "checkpoints": "checkpoints/",
        "config": configs.FILE,
        "metrics of each logged step": "metrics.jsonl",
        "held-out figures": "evaluation.json",
        "curves": "curves.png",
        **job.files,
    }
    if job.config.tensorboard and importlib.util.find_spec("tensorboardX"):
        written["TensorBoard"] = "tensorboard/"
    for description, name in written.items():
        if (workdir / name).exists():
            report.console.print(f"{description:<32}{workdir / name}")

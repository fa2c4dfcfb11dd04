"""Trains a tokenizer or a prior, from its newest checkpoint or from the start, and measures it."""

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
from vq_jax.codec import COUNTS
from vq_jax.errors import UserError
from vq_jax.tasks.job import Job
from vq_jax.tasks.train_prior import prior_job
from vq_jax.tasks.train_tokenizer import tokenizer_job
from vq_jax.training import parallel
from vq_jax.training.checkpoint import Checkpoints
from vq_jax.training.report import (
    Report,
    make_console,
    plot_curves,
    print_parameters,
    read_lines,
)
from vq_jax.training.state import join, split
from vq_jax.training.steps import Phase

_INIT = 2**32 - 1  # folded into the key for the first params; no step ever has this number


@dataclasses.dataclass(frozen=True)
class _Run:
    """What the parts of one training share."""

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
    """`--mode=train`: trains from the newest checkpoint in `workdir`, or from the start.

    SIGTERM saves a checkpoint and returns, and so does Ctrl-C, after which `KeyboardInterrupt` is
    raised; the same call goes on from it.

    Args:
      config: the run's.
      workdir: gets config.json, checkpoints/, metrics.jsonl, the figures and the pictures.
      profile: write a trace of ten steps to `workdir`/profile.
      distributed: whether this is one process of many.
      coordinator, processes, process: see `parallel.join_processes`.
    """
    if configs.is_prior(config):
        parallel.keep_memory()
    if distributed:
        parallel.join_processes(coordinator, processes, process)
    elif not (coordinator is processes is process is None):
        raise UserError("--coordinator, --processes and --process go with --distributed")
    configs.check(config)
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file: name a folder")
    nearest = next(p for p in (workdir, *workdir.absolute().parents) if p.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):  # rather now than after the data
        raise UserError(f"--workdir={workdir} cannot be written in {nearest}: name another folder")
    key = jax.random.key(config.seed)
    make_job = prior_job if configs.is_prior(config) else tokenizer_job
    job = make_job(config, workdir, jax.random.fold_in(key, _INIT))
    total, state = job.total, job.init()

    say = make_console().print
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"--workdir={workdir} cannot be made: {e.strerror}") from e
    with (
        parallel.Preemption() as preemption,
        contextlib.closing(job.batches()) as iterator,
        Checkpoints(workdir / "checkpoints", config.keep) as checkpoints,
    ):
        start, changes = 0, []
        if checkpoints.latest_step():
            changes = _check_resume(config, workdir)
            start, parts = checkpoints.restore(split(state), iterator)
            state = join(parts, state)
            job.check(state)
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
        if start and start < total and (workdir / COUNTS).exists():
            say(
                f"warning: {workdir} has compressed files ({COUNTS}), which its model will not read "
                "once it is trained further: copy the folder to keep a model that does"
            )
        report = Report(
            workdir,
            total,
            start,
            tensorboard=config.tensorboard,
            wandb=config.wandb,
            wandb_config=config.to_dict(),
        )
        run = _Run(job, key, iterator, checkpoints, report)
        try:
            if report.active:
                configs.save(config, workdir / "config.json")
            if not start:
                sizes = len(job.splits.train), len(job.splits.val)
                place = f"{config.data.source} {config.data.folder}".strip()
                counts = "{:,} images to train on, {:,} held out".format(*sizes)
                report.console.print(f"{counts}: {place}")
                print_parameters(report.console, job.networks(state))
            state, stopped = _loop(run, state, preemption, profile)
        finally:
            report.close()
    if preemption.interrupted:
        raise KeyboardInterrupt(stopped)
    if not stopped:
        _finish(run, state)


def _check_resume(config: ConfigDict, workdir: Path) -> list[str]:
    """Lists what has changed since the run began; refuses what its checkpoint cannot follow."""
    saved = workdir / "config.json"
    if not saved.exists():
        return []
    before = configs.load(saved)
    if configs.is_prior(before) != configs.is_prior(config):
        kinds = [("a tokenizer", "a prior")[configs.is_prior(c)] for c in (before, config)]
        raise UserError(f"{workdir} holds {kinds[0]}: take another --workdir for {kinds[1]}")
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


def _loop(run: _Run, state: Any, preemption: parallel.Preemption, profile: bool) -> tuple[Any, str]:
    """Save, next batch, step; each step's metrics are read while the next one runs.

    Returns:
      the state at the end, or where a signal stopped it; what was said of that, or "". Either is
      saved, unless the last steps were not finite.
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
        phase = next(p for p in job.phases if step < p.start + p.steps)
        if phase.name not in compiled:
            body = job.step(phase)
            compiled[phase.name] = parallel.compile_step(body, config.parallel, state)
        state = job.prepare(state, step, run.key)
        stop = preemption.asked(step)
        if step > saved and (stop or step % config.save_every == 0):
            flush_metrics()  # a line that is not written before the checkpoint would never be
            if not watch.streak:
                save()
        if stop:
            if tracing:
                jax.profiler.stop_trace()
            said = (
                f"stopped by {preemption.asked_by} at step {step}: the same command goes on from "
                f"step {saved}"
            )
            report.console.print(said)
            return state, said
        if step in profiled and step == profiled[0] and not tracing:
            jax.profiler.start_trace(str(job.workdir / "profile"))
            tracing = True
        asked = time.perf_counter()
        batch = next(run.iterator)
        wait += time.perf_counter() - asked
        state, metrics = compiled[phase.name](state, batch, run.key)
        flush_metrics()
        if watch.streak >= config.skip_limit:
            # Nothing has been saved since the last time: that checkpoint is not to be trusted.
            before = saved if went_back == saved else None
            state = _go_back(run, state, step, before)
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
            figures = job.measure(state, report.console)
            numbers = {k: v for k, v in figures.items() if isinstance(v, int | float)}
            report.write(step, {f"val_{k}": float(v) for k, v in numbers.items()})
            report.restart_clock(step)
    flush_metrics()
    if step > saved:
        save()
    if preemption.asked(step):
        said = f"stopped by {preemption.asked_by} at the end: the same command measures what it has"
        report.console.print(said)
        return state, said
    return state, ""


def _go_back(run: _Run, state: Any, step: int, before: int | None) -> Any:
    """The last checkpoint's state (before step `before`), after too many steps not finite.

    The data goes on where it is: the same batches would end the same way.
    """
    config, checkpoints = run.job.config, run.checkpoints
    what = f"{config.skip_limit} steps in a row up to step {step} were not finite"
    turn = (
        f"lower optim.lr (now {config.optim.lr}) or set optim.clip_norm (now "
        f"{config.optim.clip_norm})"
    )
    if not any(before is None or saved < before for saved in checkpoints.steps()):
        raise UserError(f"training has diverged: {what}, and no checkpoint is left; {turn}")
    step, parts = checkpoints.restore(split(state), before=before)
    run.report.warn(f"{what}: back to step {step}, with other batches; if it comes again, {turn}")
    return join(parts, state)


def _finish(run: _Run, state: Any) -> None:
    """Figures, pictures, and where everything lies."""
    job, report = run.job, run.report
    workdir = job.workdir
    if report.active:
        plot_curves(workdir / "metrics.jsonl", workdir / "curves.png")
        report.console.print("measuring on what is held out")
    job.measure(state, report.console)
    if not report.active:
        return
    lines = [line for line in read_lines(workdir / "metrics.jsonl") if "data_wait" in line]
    if lines:
        waits = float(np.median([line["data_wait"] for line in lines]))
        report.console.print(f"the step waited for data {waits:.1%} of the time (median)")
    places = {
        "checkpoints": "checkpoints/",
        "config": "config.json",
        "metrics of each logged step": "metrics.jsonl",
        "held-out figures": "evaluation.json",
        "curves": "curves.png",
        **job.places,
    }
    if job.config.tensorboard and importlib.util.find_spec("tensorboardX"):
        places["TensorBoard"] = "tensorboard/"
    for what, name in places.items():
        if (workdir / name).exists():
            report.console.print(f"{what:<32}{workdir / name}")

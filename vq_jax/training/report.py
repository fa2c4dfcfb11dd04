"""Reports of a run: progress bar, metrics.jsonl, TensorBoard, wandb, tables and curves."""

import hashlib
import importlib.util
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from vq_jax.console import SECONDS_BETWEEN_LINES, is_live
from vq_jax.files import write, writing

# Metrics shown beside the bar.
_SHOWN = {
    "loss_reconstruction": "rec",
    "loss_perceptual": "lpips",
    "loss_discriminator": "disc",
    "perplexity": "perplexity",
    "bits_per_code": "bits/code",
}


def make_console() -> Console:
    """Returns the console of process 0; those of other processes are silent."""
    return Console(quiet=jax.process_index() != 0, highlight=False, soft_wrap=True)


class Report:
    """Writes a run's metrics to all writers. Only process 0 writes."""

    def __init__(
        self,
        workdir: Path,
        total_steps: int,
        start_step: int = 0,
        *,
        tensorboard: bool = False,
        wandb: str = "",
        wandb_config: dict[str, Any] | None = None,
        noun: str = "image",
    ):
        """Opens the writers.

        Args:
          workdir: the run's folder.
          total_steps: number of steps of the run.
          start_step: step that the run continues from.
          tensorboard: whether to write TensorBoard's files, if tensorboardX is installed.
          wandb: project to log to; "" does not.
          wandb_config: config to log there.
          noun: name of an example, in rates.
        """
        self._noun = noun
        self.active = jax.process_index() == 0
        self._workdir = workdir
        self.console = make_console()
        self._total = total_steps
        self._progress: Progress | None = None
        self._writers: list[Any] = []
        self._closers: list[Any] = []
        self._last_line = -math.inf
        self._clock = (time.perf_counter(), start_step)
        if not self.active:
            return
        self._file = _rewind(workdir / "metrics.jsonl", start_step)
        if tensorboard and importlib.util.find_spec("tensorboardX"):
            from tensorboardX import SummaryWriter

            writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)
            self._writers.append(
                lambda step, values: [writer.add_scalar(k, v, step) for k, v in values.items()]
            )
            self._closers.append(writer.close)
        if wandb:
            import wandb as wandb_package

            name = hashlib.sha256(str(workdir.absolute()).encode()).hexdigest()[:16]
            run = wandb_package.init(
                project=wandb, dir=str(workdir), config=wandb_config, id=name, resume="allow"
            )
            self._writers.append(lambda step, values: run.log(values, step=step))
            self._closers.append(run.finish)
        if is_live(self.console):
            self._progress = Progress(
                TextColumn("{task.fields[phase]}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[shown]}"),
                console=self.console,
            )
            self._task = self._progress.add_task(
                "train", total=total_steps, completed=start_step, phase="", shown=""
            )
            self._progress.start()

    def step(
        self,
        step: int,
        phase: str,
        metrics: dict[str, float],
        batch_size: int,
        wait: float,
        log: bool,
    ) -> None:
        """Takes the metrics of a finished step.

        Args:
          step: number of steps done, including it.
          phase: its phase.
          metrics: scalars of the step.
          batch_size: number of examples a step.
          wait: seconds spent waiting for data since the last logged step.
          log: whether to write the metrics, or only to move the bar.
        """
        if not self.active:
            return
        if self._progress is not None:
            self._progress.update(self._task, completed=step, phase=phase)
        if not log:
            return
        now, (then, since) = time.perf_counter(), self._clock
        self._clock = (now, step)
        seconds = max(now - then, 1e-9)
        values = {k: float(v) for k, v in metrics.items()}
        rate = f"{self._noun}s_per_second"
        values[rate] = batch_size * (step - since) / seconds
        values["data_wait"] = wait / seconds
        self.write(step, values, phase=phase)
        shown = f"{values[rate]:.0f} {self._noun}s/s " + " ".join(
            f"{name} {values[key]:.3g}" for key, name in _SHOWN.items() if key in values
        )
        if values.get("skipped"):
            shown += f" skipped {values['skipped']:.0f}"
        if self._progress is not None:
            self._progress.update(self._task, shown=shown)
        elif now - self._last_line > SECONDS_BETWEEN_LINES or step == self._total:
            self._last_line = now
            steps_per_second = max(values[rate] / batch_size, 1e-9)
            left = (self._total - step) / steps_per_second
            eta = time.strftime("%H:%M:%S", time.gmtime(left))
            self.console.print(f"{phase:<12}{step}/{self._total}  ETA {eta}  {shown}")

    def write(self, step: int, values: dict[str, float], **words: str) -> None:
        """Writes a line to all writers, without values that are NaN or infinite."""
        if not self.active:
            return
        values = {k: v for k, v in values.items() if math.isfinite(v)}
        line = {"step": step, **words, **{k: round(v, 6) for k, v in values.items()}}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for add in self._writers:
            add(step, values)

    def warn(self, text: str) -> None:
        """Prints a warning."""
        self.console.print("warning:", text, style="yellow", markup=False)

    def rewind(self, step: int) -> None:
        """Continues from `step`: removes the lines of later steps."""
        if self.active:
            self._file.close()
            self._file = _rewind(self._workdir / "metrics.jsonl", step)
            self.restart_clock(step)

    def restart_clock(self, step: int) -> None:
        """Restarts the measurement of rates at `step`, after a pause in training."""
        self._clock = (time.perf_counter(), step)

    def close(self) -> None:
        """Stops the bar and closes the file."""
        if self._progress is not None:
            self._progress.stop()
        if self.active:
            self._file.close()
        for close in self._closers:
            close()


def _rewind(path: Path, step: int) -> Any:
    """Opens metrics.jsonl for appending, without lines of steps after `step`."""
    if path.exists():
        kept = [line for line in read_lines(path) if line["step"] <= step]
        write("".join(json.dumps(line) + "\n" for line in kept).encode(), path)
    return path.open("a")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads the lines of a metrics.jsonl, without one that a crash has truncated."""
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def print_parameters(console: Console, networks: dict[str, dict[str, Any]]) -> None:
    """Prints the number of parameters of each group of each network."""
    for title, params in networks.items():
        _print_parameters(console, title, params)


def _print_parameters(console: Console, title: str, params: dict[str, Any]) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("group")
    table.add_column("arrays", justify="right")
    table.add_column("parameters", justify="right")
    total = 0
    for name, tree in params.items():
        leaves = jax.tree.leaves(tree)
        count = sum(leaf.size for leaf in leaves)
        total += count
        table.add_row(name, str(len(leaves)), f"{count:,}")
    table.add_row("all", "", f"{total:,}")
    console.print(table)


def show_figures(
    console: Console, figures: dict[str, Any], rows: Mapping[str, tuple[str, str]]
) -> None:
    """Prints held-out figures; `rows` has their headings and formats, in order."""
    table = Table(title="held-out split", title_justify="left")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, (heading, form) in rows.items():
        if name in figures:
            table.add_row(heading, format(figures[name], form))
    console.print(table)


def save_figures(figures: dict[str, Any], workdir: Path) -> None:
    """Writes evaluation.json. A run that has it is finished."""
    write((json.dumps(figures, indent=2) + "\n").encode(), workdir / "evaluation.json")


# --- pictures -------------------------------------------------------------------------------------


def _figure(rows: int, columns: int, width: float, height: float):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    with writing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    pyplot.close(figure)


def plot_curves(metrics_file: Path, path: Path) -> None:
    """Plots losses and other metrics over the steps of a metrics.jsonl."""
    lines = [line for line in read_lines(metrics_file) if "phase" in line]
    panels = [
        [("loss_reconstruction", "reconstruction")],
        [("loss_perceptual", "LPIPS")],
        [("loss_commitment", "commitment")],
        [("perplexity", "perplexity of a batch")],
        [("bits_per_code", "bits per code")],
        [("accuracy", "accuracy of the likeliest code")],
        [("loss_generator", "generator"), ("loss_discriminator", "discriminator")],
        [("logits_real", "logits of real"), ("logits_fake", "logits of fake")],
    ]
    panels = [p for p in panels if any(key in line for key, _ in p for line in lines)]
    if not panels:
        return
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = _figure(rows, columns, 4.2 * columns, 2.9 * rows)
    axes = np.atleast_1d(axes).ravel()
    starts: dict[str, int] = {}
    for line in lines:
        starts.setdefault(line["phase"], line["step"])
    for axis, panel in zip(axes, panels, strict=False):
        shown = [line for line in lines if any(key in line for key, _ in panel)]
        for key, label in panel:
            points = [(line["step"], line[key]) for line in shown if key in line]
            if points:
                axis.plot(*zip(*points, strict=True), label=label, linewidth=1)
        for phase, step in starts.items():
            first, last = shown[0]["step"], shown[-1]["step"]
            if not first < step <= last:
                continue
            axis.axvline(step, color="grey", linestyle=":", linewidth=1)
            if not any(step < other < step + 0.1 * (last - first) for other in starts.values()):
                axis.text(
                    step, 1.01, phase, transform=axis.get_xaxis_transform(),
                    rotation=20, fontsize=7, color="grey",
                )  # fmt: skip
        if len(panel) == 1:
            axis.set_ylabel(panel[0][1])
        else:
            axis.set_ylabel("loss" if panel[0][0].startswith("loss") else "logits")
            axis.legend(fontsize=8)
        if panel[0][0] in ("loss_reconstruction", "loss_commitment"):
            axis.set_yscale("log")
        axis.set_xlabel("step")
    for axis in axes[len(panels) :]:
        axis.remove()
    _save(figure, path)


def plot_codebook(counts_QK: np.ndarray, distances_QK: np.ndarray | None, path: Path) -> None:
    """Plots the frequency of each code, and the distance of each entry to its nearest neighbour.

    Args:
      counts_QK: counts of the codes of a whole split, for each codebook (level, head).
      distances_QK: to the nearest entry of the same codebook; None if entries are fixed.
      path: of the PNG.
    """
    books, size = counts_QK.shape
    panels = 1 if distances_QK is None else 2
    figure, axes = _figure(1, panels, 5.5 * panels, 3.2)
    axes = np.atleast_1d(axes)
    for q, counts_K in enumerate(counts_QK):
        label = f"{(counts_K > 0).sum()} of {size} codes in use"
        label = f"code {q + 1}: {label}" if books > 1 else label
        frequency_K = np.sort(counts_K)[::-1] / max(counts_K.sum(), 1)
        axes[0].plot(np.where(frequency_K > 0, frequency_K, np.nan), label=label, linewidth=1.2)
        if distances_QK is not None:
            axes[1].plot(np.sort(distances_QK[q])[::-1], linewidth=1.2)
    axes[0].axhline(1 / size, color="grey", linestyle=":", label="uniform")
    axes[0].set_yscale("log")
    axes[0].set_ylabel("share of the held-out codes")
    axes[0].set_xlabel("code, by rank")
    axes[0].legend(fontsize=8)
    if distances_QK is not None:
        axes[1].set_ylabel("distance to the nearest entry")
        axes[1].set_xlabel("entry, by rank")
        axes[1].set_ylim(bottom=0)
    for axis in axes:
        axis.set_xlim(0, size)
    _save(figure, path)

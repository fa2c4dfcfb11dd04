import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from vq_jax import console
from vq_jax.training import report


def test_a_resumed_run_removes_the_lines_after_its_start_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": s, "phase": "joint", "loss": s}) for s in (10, 20, 30)]
    path.write_text("\n".join(lines) + '\n{"step": 40, "lo')  # the last line is incomplete
    writer = report.Report(tmp_path, total_steps=100, start_step=20)
    writer.step(30, "joint", {"loss": 0.5}, batch_size=8, wait=0.0, log=True)
    writer.step(31, "joint", {"loss": 0.4}, batch_size=8, wait=0.0, log=False)
    writer.close()
    found = report.read_lines(path)
    assert [line["step"] for line in found] == [10, 20, 30]
    assert found[-1]["loss"] == 0.5
    assert found[-1]["images_per_second"] > 0


def test_tensorboard_files_have_the_metrics(tmp_path):
    writer = report.Report(tmp_path, total_steps=10, tensorboard=True)
    writer.step(10, "joint", {"loss": 0.25}, batch_size=8, wait=0.0, log=True)
    writer.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in events.read_bytes()


def test_curves_and_codebook_usage_are_plotted(tmp_path, rng):
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"step": s, "phase": "joint" if s < 50 else "adversarial", "loss_reconstruction": 1 / s,
         "perplexity": s, "logits_real": 1.0, "logits_fake": -1.0}
        for s in range(10, 100, 10)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report.plot_curves(path, tmp_path / "curves.png")
    counts = rng.integers(0, 5, size=(2, 64))
    report.plot_codebook(counts, rng.random((2, 64)), tmp_path / "usage.png")
    for name in ("curves.png", "usage.png"):
        with Image.open(tmp_path / name) as image:
            pixels = np.asarray(image.convert("L"))
        assert pixels.shape[1] > 400 and pixels.std() > 5  # not blank
    assert not list(tmp_path.glob(".*tmp"))


@pytest.mark.parametrize("term,live", [("xterm", True), ("dumb", False)])
def test_a_terminal_without_progress_bars_gets_lines(tmp_path, monkeypatch, term, live):
    monkeypatch.setenv("TERM", term)
    output = io.StringIO()

    def terminal():
        return Console(file=output, force_terminal=True, highlight=False, soft_wrap=True)

    monkeypatch.setattr(report, "make_console", terminal)
    writer = report.Report(tmp_path, total_steps=10)
    for step in range(1, 11):
        writer.step(step, "joint", {"loss": 1.0}, batch_size=8, wait=0.0, log=True)
    writer.close()
    assert ("joint       10/10" in output.getvalue()) != live
    output.truncate(0)
    monkeypatch.setattr(console, "stderr_console", terminal)
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    assert list(console.track(range(3), "counting")) == [0, 1, 2]
    assert ("counting 1 of 3" in output.getvalue()) != live

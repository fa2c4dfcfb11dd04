import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from vq_jax.training import report


def test_a_resumed_run_takes_back_the_lines_it_writes_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": s, "phase": "joint", "loss": s}) for s in (10, 20, 30)]
    path.write_text("\n".join(lines) + '\n{"step": 40, "lo')  # and one cut short by a crash
    writer = report.Report(tmp_path, total_steps=100, start_step=20)
    writer.step(30, "joint", {"loss": 0.5}, images=8, wait=0.0, log=True)
    writer.step(31, "joint", {"loss": 0.4}, images=8, wait=0.0, log=False)
    writer.close()
    found = report.read_lines(path)
    assert [line["step"] for line in found] == [10, 20, 30]
    assert found[-1]["loss"] == 0.5
    assert found[-1]["images_per_second"] > 0


def test_tensorboard_gets_the_same_numbers(tmp_path):
    writer = report.Report(tmp_path, total_steps=10, tensorboard=True)
    writer.step(10, "joint", {"loss": 0.25}, images=8, wait=0.0, log=True)
    writer.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in events.read_bytes()


def test_curves_and_usage_are_drawn(tmp_path, rng):
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
        assert pixels.shape[1] > 400 and pixels.std() > 5  # something is drawn
    assert not list(tmp_path.glob(".*tmp"))


@pytest.mark.parametrize("term,live", [("xterm", True), ("dumb", False)])
def test_a_terminal_that_draws_no_bar_gets_lines(tmp_path, monkeypatch, term, live):
    monkeypatch.setenv("TERM", term)
    said = io.StringIO()

    def console(**kwargs):
        return Console(file=said, force_terminal=True, highlight=False, soft_wrap=True)

    monkeypatch.setattr(report, "make_console", console)
    writer = report.Report(tmp_path, total_steps=10)
    for step in range(1, 11):
        writer.step(step, "joint", {"loss": 1.0}, images=8, wait=0.0, log=True)
    writer.close()
    assert ("joint       10/10" in said.getvalue()) != live
    said.truncate(0)
    monkeypatch.setattr(report, "Console", console)
    monkeypatch.setattr(report, "_SECONDS_BETWEEN_LINES", 0.0)
    assert list(report.track(range(3), "counting")) == [0, 1, 2]
    assert ("counting 1 of 3" in said.getvalue()) != live

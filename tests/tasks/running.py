"""Running the program as a user does: real processes, real files."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment():
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    # Runs of one config compile the same programs: once is enough.
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(Path(os.environ["VQ_JAX_CACHE"]) / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return env | cache


def program(*arguments, check=True):
    done = subprocess.run(
        [sys.executable, "-m", "vq_jax.main", *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "vq_jax.main", *arguments],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_two(*arguments):
    """The program as two processes of one run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        start(
            *arguments, "--config.parallel=jit", "--distributed",
            f"--coordinator=127.0.0.1:{port}", "--processes=2", f"--process={i}",
        )
        for i in range(2)
    ]  # fmt: skip


def end(processes):
    """What each printed, once all have ended well."""
    said = [p.communicate(timeout=200)[0] for p in processes]
    assert [p.returncode for p in processes] == [0] * len(processes), said
    return said


def steps_logged(workdir):
    metrics = Path(workdir) / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def wait_for_steps(workdir, count, *processes):
    """Returns once the run has logged so many steps, or a process has ended."""
    limit = time.monotonic() + 200
    while steps_logged(workdir) < count and all(p.poll() is None for p in processes):
        assert time.monotonic() < limit
        time.sleep(0.01)


def lines(workdir, *leave_out):
    text = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
    leave_out = {"images_per_second", "data_wait", *leave_out}
    return [{k: v for k, v in json.loads(t).items() if k not in leave_out} for t in text]

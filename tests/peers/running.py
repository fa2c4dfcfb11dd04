"""Running the program: in this process for what it says and writes, in real ones for what only a process
can show: signals, kills, several hosts, standard streams."""

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from vq_jax import cli

ROOT = Path(__file__).parents[2]


class Done(NamedTuple):
    """What a run of the program has ended with."""

    returncode: int
    stdout: str
    stderr: str


def program(*arguments, check=True):
    """Runs the command line in this process."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = cli.main(["vq_jax", *map(str, arguments)])
    done = Done(code, stdout.getvalue(), stderr.getvalue())
    if check:
        assert code == 0, done.stdout + done.stderr
    return done


def mistake(*arguments):
    """The one line that a run of the program ends with."""
    done = program(*arguments, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done.stderr


def environment():
    """That of a user's process, with one device; compiled programs are those of this session."""
    return {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}


def process(*arguments, check=True, **kwargs):
    """Runs the program in a process of its own."""
    kwargs = {"env": environment(), "text": True, "timeout": 300} | kwargs
    done = subprocess.run(
        [sys.executable, "-m", "vq_jax.main", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        check=False,
        **kwargs,
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def start(*arguments, **kwargs):
    return subprocess.Popen(
        [sys.executable, "-m", "vq_jax.main", *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **kwargs,
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


def end(processes, *codes):
    """What each printed, once all have ended: well, or with these exit codes."""
    said = [p.communicate(timeout=200)[0] for p in processes]
    assert [p.returncode for p in processes] == [*(codes or [0] * len(processes))], said
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

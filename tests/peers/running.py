"""Runs the program in tests.

`program` runs it in the current process, to check its output and its files. `process` and `start`
run it in a separate process, to check signals, several hosts and standard streams.
"""

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


class ProgramResult(NamedTuple):
    """The exit code and output of a run of the program."""

    returncode: int
    stdout: str
    stderr: str


def program(*arguments, check=True):
    """Runs the program in the current process; by default, asserts that it succeeds."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = cli.main(["vq_jax", *map(str, arguments)])
    result = ProgramResult(code, stdout.getvalue(), stderr.getvalue())
    if check:
        assert code == 0, result.stdout + result.stderr
    return result


def user_error(*arguments):
    """Runs the program, asserts that it fails with exit code 2, and returns its one-line error."""
    result = program(*arguments, check=False)
    assert result.returncode == 2, result.stdout + result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    return result.stderr


def environment():
    """Returns the environment variables of a separate process, which has one device."""
    return {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}


def process(*arguments, check=True, **kwargs):
    """Runs the program in a separate process; by default, asserts that it succeeds."""
    kwargs = {"env": environment(), "text": True, "timeout": 300} | kwargs
    result = subprocess.run(
        [sys.executable, "-m", "vq_jax.main", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        check=False,
        **kwargs,
    )
    if check:
        assert result.returncode == 0, result.stdout + result.stderr
    return result


def start(*arguments, **kwargs):
    """Starts the program in a separate process, with stdout and stderr joined, and returns it."""
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
    """Starts one run in two processes."""
    with socket.socket() as free_socket:
        free_socket.bind(("127.0.0.1", 0))
        port = free_socket.getsockname()[1]
    return [
        start(
            *arguments, "--config.parallel=jit", "--distributed",
            f"--coordinator=127.0.0.1:{port}", "--processes=2", f"--process={i}",
        )
        for i in range(2)
    ]  # fmt: skip


def wait_for_exit(processes, *codes):
    """Waits for all processes, asserts their exit codes (default 0) and returns their outputs."""
    outputs = [p.communicate(timeout=200)[0] for p in processes]
    assert [p.returncode for p in processes] == [*(codes or [0] * len(processes))], outputs
    return outputs


def count_logged_steps(workdir):
    """Returns the number of lines in a run's metrics.jsonl."""
    metrics = Path(workdir) / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def wait_for_steps(workdir, count, *processes):
    """Waits until the run has logged `count` steps, or one of its processes has ended."""
    deadline = time.monotonic() + 200
    while count_logged_steps(workdir) < count and all(p.poll() is None for p in processes):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def logged_metrics(workdir, *excluded):
    """Reads a run's metrics.jsonl, without timings and the `excluded` metrics."""
    lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
    excluded = {"images_per_second", "data_wait", *excluded}
    return [{k: v for k, v in json.loads(line).items() if k not in excluded} for line in lines]

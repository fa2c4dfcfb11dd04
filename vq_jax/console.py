"""Output for the user: messages on standard error, progress bars, the console of process 0."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

# Between lines about progress, where no bar can be drawn.
SECONDS_BETWEEN_LINES = 10.0
T = TypeVar("T")


def stderr(message: str) -> None:
    """Prints one line on standard error."""
    print(message, file=sys.stderr, flush=True)


def is_live(console: Console) -> bool:
    """Whether a console can redraw a progress bar."""
    return console.is_terminal and not console.is_dumb_terminal


def stderr_console() -> Console:
    """A console on standard error."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def track(items: Sequence[T], title: str) -> Iterator[T]:
    """Yields the items and shows progress on standard error.

    Progress is a bar on a terminal, and a line every ten seconds elsewhere.
    """
    console = stderr_console()
    if is_live(console):
        yield from rich_track(items, title, console=console, transient=True, disable=len(items) < 2)
        return
    last = time.perf_counter()
    for done, item in enumerate(items):
        if (now := time.perf_counter()) - last > SECONDS_BETWEEN_LINES:
            last = now
            console.print(f"{title} {done} of {len(items)}")
        yield item

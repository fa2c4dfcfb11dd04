"""Timing contenders side by side: a machine that slows down slows all of them down."""

import time
from collections.abc import Callable


def in_turns(
    contenders: dict[str, Callable[[], object]], rounds: int, warm: int = 1
) -> dict[str, list[float]]:
    """Milliseconds of each contender in each round.

    Args:
      contenders: name -> what to time; one that returns a float has timed itself.
      rounds: turns that count.
      warm: turns before them that do not.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warm + rounds):
        for name, run in contenders.items():
            started = time.perf_counter()
            result = run()
            taken = 1e3 * (time.perf_counter() - started)
            if turn >= warm:
                times[name].append(result if isinstance(result, float) else taken)
    return times

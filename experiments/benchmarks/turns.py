"""Times contenders alternately, so that a slowdown of the machine affects all of them."""

import statistics
import time
from collections.abc import Callable


def in_turns(
    contenders: dict[str, Callable[[], object]], rounds: int, warm: int = 1
) -> dict[str, list[float]]:
    """Times each contender once per round.

    Args:
      contenders: name -> function to time. If it returns a float, that is taken as its time in
        milliseconds.
      rounds: number of timed rounds.
      warm: number of untimed rounds before them.

    Returns:
      name -> milliseconds of each round.
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


def show(title: str, times: dict[str, list[float]], images: int) -> dict[str, dict[str, float]]:
    """Prints and returns the medians; times are also shown relative to the first contender."""
    medians = {name: statistics.median(ms) for name, ms in times.items()}
    first = next(iter(medians.values()))
    print(f"{title}\n  {'':<24}{'ms':>10}{'images/s':>10}{'relative time':>20}")
    for name, ms in medians.items():
        print(f"  {name:<24}{ms:>10.0f}{1e3 * images / ms:>10.2f}{ms / first:>20.2f}", flush=True)
    return {
        name: {"ms": ms, "images_per_second": 1e3 * images / ms} for name, ms in medians.items()
    }

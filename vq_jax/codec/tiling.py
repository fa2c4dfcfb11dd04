"""Cuts axes of images and frames into overlapping tiles, and blends decoded tiles."""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np

_RAMP = 16  # elements over which neighbouring tiles are blended


@dataclasses.dataclass(frozen=True)
class Cut:
    """One axis of an image, cut into tiles. The fields but `factor` are numbers of codes.

    Attributes:
      size: of each tile.
      starts: where tiles begin.
      seams: where the kept part of one tile ends and that of the next begins; one fewer than tiles.
      factor: pixels that a code spans.
    """

    size: int
    starts: tuple[int, ...]
    seams: tuple[int, ...]
    factor: int = 1

    def pixels(self, start: int) -> tuple[int, int]:
        """Returns the pixels [from, to) of the tile that begins at a code."""
        return start * self.factor, (start + self.size) * self.factor

    def share(self, tile: int) -> tuple[int, int]:
        """Returns the codes [from, to) of a tile that are kept."""
        ends = [0, *self.seams, self.starts[-1] + self.size]
        return ends[tile], ends[tile + 1]

    def weights(self, ramp: float = _RAMP) -> list[np.ndarray]:
        """Returns blending weights of each tile's pixels, float32; they sum to 1 at every pixel."""
        ends = [-np.inf, *(seam * self.factor for seam in self.seams), np.inf]
        found = []
        for start, (first, last) in zip(self.starts, itertools.pairwise(ends), strict=True):
            place = np.arange(*self.pixels(start)) + 0.5
            rise, fall = (place - first) / ramp + 0.5, (last - place) / ramp + 0.5
            found.append(np.clip(np.minimum(rise, fall), 0, 1).astype(np.float32))
        return found


def cut(codes: int, tile: int, margin: int, step: int = 1, factor: int = 1) -> Cut:
    """Cuts an axis into the smallest number of equal tiles that overlap by twice the margin.

    Args:
      codes: number of codes along the axis.
      tile: largest number of codes along a tile.
      margin: codes of a tile beyond the part that is kept, less than half a tile.
      step: sizes of several tiles are multiples of it, or the largest size.
      factor: pixels that a code spans.
    """
    if codes <= tile:
        return Cut(codes, (0,), (), factor)
    count = math.ceil((codes - 2 * margin) / (tile - 2 * margin))
    least = math.ceil((codes + 2 * margin * (count - 1)) / count)
    size = min(-(-least // step) * step, tile)
    starts = [i * (codes - size) // (count - 1) for i in range(count)]
    seams = ((a + size + b) // 2 for a, b in itertools.pairwise(starts))
    return Cut(size, tuple(starts), tuple(seams), factor)


def mirrored(array: np.ndarray, rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
    """Returns a window of an array [H, W, ...], mirrored beyond its lower and right edges."""
    spans: list[Any] = []
    for (first, last), side in zip((rows, columns), array.shape, strict=False):
        if last <= side:
            spans.append(slice(first, last))
        else:
            there = np.arange(first, last) % (2 * side)
            spans.append(np.minimum(there, 2 * side - 1 - there))
    return array[spans[0]][:, spans[1]]

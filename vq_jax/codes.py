"""What the codes of an example look like: `CodeSpec`; and the levels of a pyramid of codes."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Grids = Sequence[tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class CodeSpec:
    """The shape and range of an example's codes.

    Attributes:
      grid: shape of the positions: (8, 8) for an image, () where an example is one position.
      num_codes: number of entries of a codebook; codes are in [0, num_codes).
      code_shape: shape of a position's codes: () for one code, (Q,) for Q of them.
      grids: those of the levels of a pyramid, coarse to fine. Its codes follow each other, level by level
        and row by row, and `grid` is their number. () if all positions are of one grid.
    """

    grid: tuple[int, ...]
    num_codes: int
    code_shape: tuple[int, ...] = ()
    grids: tuple[tuple[int, ...], ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an example's codes, such as (8, 8) or (8, 8, Q)."""
        return (*self.grid, *self.code_shape)

    @property
    def books(self) -> int:
        """Q, the number of codes a position has."""
        return math.prod(self.code_shape)

    @property
    def length(self) -> int:
        """N, the number of codes an example has."""
        return math.prod(self.shape)

    @property
    def bits(self) -> float:
        """Bits of an example's codes at fixed width, log2(num_codes) each."""
        return self.length * math.log2(self.num_codes)


def levels_of(grids: Grids) -> np.ndarray:
    """Returns the level of each code of a pyramid, int [L], the codes of a level after those of the one before."""
    return np.repeat(np.arange(len(grids)), [math.prod(grid) for grid in grids])


def split_levels(x: Any, grids: Grids) -> list[Any]:
    """Cuts the values of a pyramid's codes, [B, L, ...], into those of its levels, [B, *grid, ...]."""
    parts, start = [], 0
    for grid in grids:
        part = x[:, start : start + math.prod(grid)]
        parts.append(part.reshape(x.shape[0], *grid, *x.shape[2:]))
        start += math.prod(grid)
    return parts

"""Finite scalar quantization: `fsq`."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vq_jax.quantizers import functions
from vq_jax.quantizers.base import Quantizer


class FSQ(Quantizer):
    """Rounds each of a few bounded dimensions to one of its levels (Mentzer et al. 2023, sec. 3.1).

    There is no codebook to learn and no loss. Dimension i has `levels[i]` values, spaced evenly in
    [-1, 1]. A code is a number in mixed radix `levels`: digit i is the position of dimension i's
    value, and dimension 0 is the lowest digit. The digits are rounded in float32 and then converted
    to integers, so every code stays reachable from bfloat16 latents.

    Attributes:
      levels: number of values of each dimension, 3 or more; their product is the number of codes.
        The paper's: 2^8 (8, 6, 5); 2^10 (8, 5, 5, 5); 2^12 (7, 5, 5, 5, 5); 2^14 (8, 8, 8, 6, 5);
        2^16 (8, 8, 8, 5, 5, 5).
      bound: shift of a dimension with an even number of levels. "atanh" keeps 0 at 0. "tan" is the
        shift in the authors' code, which gives other codes for the same latents.
    """

    levels: tuple[int, ...] = (8, 8, 8)
    bound: str = "atanh"

    def setup(self):
        if not self.levels or min(self.levels) < 3:
            raise ValueError(
                f"quantizer.levels is {tuple(self.levels)}: use 3 or more for each dimension"
            )
        self.check_choices(bound=("atanh", "tan"))
        if self.num_codes > 2**24:
            raise ValueError(
                f"quantizer.levels is {tuple(self.levels)}, which makes {self.num_codes:,} codes: "
                "use 2^24 codes or fewer"
            )

    @property
    def num_codes(self) -> int:
        return math.prod(self.levels)

    @property
    def dim(self) -> int:
        return len(self.levels)

    @property
    def radices(self) -> tuple[int, ...]:
        return tuple(self.levels)

    @property
    def residual_scale(self) -> Any:
        # The residual lies within half a step of 0. With an odd number of values, the steps of the
        # next level tile this range exactly. With an even number, the values are not symmetric
        # about 0, and the steps cover the range with one step to spare.
        levels = np.asarray(self.levels)
        return jnp.asarray(1.0 / np.where(levels % 2, levels, levels - 1), jnp.float32)

    def prepare(self, z: jax.Array) -> jax.Array:
        levels = np.asarray(self.levels)
        offset = np.where(levels % 2 == 0, 0.5, 0.0)
        if self.bound == "atanh":
            half = (levels - 1) * (1 + 1e-3) / 2
            shift = np.arctanh(offset / half)
        else:
            half = (levels - 1) * (1 - 1e-3) / 2
            shift = np.tan(offset / half)
        y = jnp.tanh(z.astype(jnp.float32) + shift.astype(np.float32))
        y = y * half.astype(np.float32) - offset.astype(np.float32)
        return y / self._half_width()

    def _half_width(self) -> jax.Array:
        """Returns the number of steps from the value 0 to the value -1, float32 [D]."""
        return jnp.asarray(np.asarray(self.levels) // 2, jnp.float32)

    def _basis(self) -> jax.Array:
        """Returns the place value of each dimension's digit in the code, int32 [D]."""
        return jnp.asarray(np.cumprod([1, *self.levels[:-1]]), jnp.int32)

    def assign(self, y, *, key, scheduled, axis_name):
        del key, scheduled
        half_width = self._half_width()
        top = jnp.asarray(self.levels, jnp.float32) - 1 - half_width
        steps = jnp.clip(jnp.round(jax.lax.stop_gradient(y) * half_width), -half_width, top)
        digits = (steps + half_width).astype(jnp.int32)
        codes = jnp.sum(digits * self._basis(), axis=-1, dtype=jnp.int32)
        aux = {"loss": jnp.zeros(()), "counts": self.count(codes, axis_name)}
        return functions.straight_through(y, steps / half_width), codes, aux

    def lookup(self, codes: jax.Array) -> jax.Array:
        digits = (codes[..., None] // self._basis()) % jnp.asarray(self.levels, jnp.int32)
        half_width = self._half_width()
        return (digits.astype(jnp.float32) - half_width) / half_width

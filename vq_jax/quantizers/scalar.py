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
    [-1, 1]; a code's digits in base `levels` are the positions, the first dimension the lowest. The
    digits are rounded in float32 and then turned into integers, so bfloat16 latents lose no codes.

    Attributes:
      levels: how many values each dimension has, 3 or more; their product is the number of codes.
        The paper's: 2^8 (8, 6, 5); 2^10 (8, 5, 5, 5); 2^12 (7, 5, 5, 5, 5); 2^14 (8, 8, 8, 6, 5);
        2^16 (8, 8, 8, 5, 5, 5).
      bound: how an even number of levels is shifted: "atanh", so that 0 stays at 0, or "tan", as the
        authors' code has it (with other codes for the same latents).
    """

    levels: tuple[int, ...] = (8, 8, 8)
    bound: str = "atanh"

    def setup(self):
        if not self.levels or min(self.levels) < 3:
            raise ValueError(
                f"quantizer.levels is {tuple(self.levels)}: 3 or more of each dimension"
            )
        self.check_choices(bound=("atanh", "tan"))
        if self.num_codes > 2**24:
            raise ValueError(f"quantizer.levels make {self.num_codes:,} codes: no more than 2^24")

    @property
    def num_codes(self) -> int:
        return math.prod(self.levels)

    @property
    def dim(self) -> int:
        return len(self.levels)

    @property
    def residual_scale(self) -> Any:
        # What is left lies within half a step. An odd number of the next level's steps tiles that; an
        # even number, lopsided about 0, covers it with one step to spare.
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
        return jnp.asarray(np.asarray(self.levels) // 2, jnp.float32)

    def _basis(self) -> jax.Array:
        return jnp.asarray(np.cumprod([1, *self.levels[:-1]]), jnp.int32)

    def assign(self, y, *, key, now, axis_name):
        del key, now
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

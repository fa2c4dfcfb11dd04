"""Levels of codes from coarse to fine, each given the coarser ones: `hierarchy`."""

import itertools
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vq_jax.bounds import Bounds
from vq_jax.codes import split_levels
from vq_jax.quantizers.base import Quantizer


class Condition(nn.Module):
    """Adapts the latents of a level to what the level above it was quantized to.

    It starts close to the identity.
    """

    hidden: int

    @nn.compact
    def __call__(self, y_BHWD: jax.Array, above_BhwD: jax.Array) -> jax.Array:
        factor = y_BHWD.shape[1] // above_BhwD.shape[1]
        enlarged = above_BhwD.repeat(factor, axis=1).repeat(factor, axis=2)
        h = jnp.concatenate([y_BHWD, enlarged], axis=-1)
        h = nn.relu(nn.Conv(self.hidden, (3, 3), precision="highest", name="conv_in")(h))
        small = nn.initializers.normal(0.02)
        conv_out = nn.Conv(
            y_BHWD.shape[-1], (3, 3), kernel_init=small, precision="highest", name="conv_out"
        )
        return y_BHWD + conv_out(h)


class HierarchyQuantizer(Quantizer):
    """A few levels of codes, coarse to fine, as in VQ-VAE-2 (Razavi et al. 2019, sec. 3.1).

    Every level has a quantizer of its own. What a level is quantized to conditions the latents of the
    next: a small network joins both.

    Latents are [B, L, D], those of all levels one after the other, row by row; L is the sum of side^2.
    Codes are int32 [B, L] in the same order. Losses are summed over the levels.

    Attributes:
      inner: quantizer of one level, with one code per latent.
      sides: increasing sides of the levels, each a multiple of the one before.
      hidden: width of the network between two levels.
    """

    inner: Any = None
    sides: tuple[int, ...] = (4, 8)
    hidden: Annotated[int, Bounds(1)] = 64

    def setup(self):
        sides, inner = tuple(self.sides), self.inner
        pairs = list(itertools.pairwise(sides))
        if not sides or sides[0] < 1 or any(b <= a or b % a for a, b in pairs):
            raise ValueError(
                f"quantizer.sides is {sides}: use increasing sides, each a multiple of the one before"
            )
        if inner.code_shape or inner.grids or inner.takes_quality:
            raise ValueError(
                f"quantizer.inner ({type(inner).__name__}) cannot be a level: a level needs one code per "
                "latent"
            )
        self.stages = [inner.clone(parent=None, name=None) for _ in sides]
        self.conditions = [Condition(self.hidden) for _ in pairs]

    @property
    def num_codes(self) -> int:
        return self.inner.num_codes

    @property
    def dim(self) -> int:
        return self.inner.dim

    @property
    def grids(self) -> tuple[tuple[int, ...], ...]:
        return tuple((side, side) for side in self.sides)

    @property
    def radices(self) -> tuple[int, ...]:
        return self.inner.radices

    @property
    def residual_scale(self) -> Any:
        return None

    def _split(self, x: jax.Array) -> list[jax.Array]:
        """Cuts [B, L, ...] into the levels [B, side, side, ...]."""
        length = sum(side**2 for side in self.sides)
        if x.ndim < 2 or x.shape[1] != length:
            raise ValueError(
                f"the latents have shape {x.shape}, but quantizer.sides is {tuple(self.sides)}, which is "
                f"{length} positions: make the sides those of the model's levels"
            )
        return split_levels(x, self.grids)

    @staticmethod
    def _join(parts: list[jax.Array]) -> jax.Array:
        """Inverts `_split`."""
        return jnp.concatenate([p.reshape(p.shape[0], -1, *p.shape[3:]) for p in parts], axis=1)

    def _level(self, i: int, y: jax.Array, above: list[jax.Array]) -> jax.Array:
        """The latents of level i, given what the levels above it were quantized to."""
        return self.conditions[i - 1](y, above[-1]) if i else y

    def pass_through(self, z):
        found: list[jax.Array] = []
        for i, y in enumerate(self._split(self.prepare(z))):
            found.append(self.stages[i].pass_through(self._level(i, y, found)))
        return self._join(found)

    def assign(self, y, *, key, scheduled, axis_name):
        found: list[jax.Array] = []
        all_codes, all_aux = [], []
        for i, part in enumerate(self._split(y)):
            z_q, codes, aux = self.stages[i](
                self._level(i, part, found),
                key=None if key is None else jax.random.fold_in(key, i),
                scheduled=scheduled,
                axis_name=axis_name,
            )
            found.append(z_q)
            all_codes.append(codes)
            all_aux.append(aux)
        aux = jax.tree.map(lambda *a: sum(a), *all_aux)
        return self._join(found), self._join(all_codes), aux

    def lookup(self, codes: jax.Array) -> jax.Array:
        parts = self._split(codes)
        return self._join([stage.lookup(p) for stage, p in zip(self.stages, parts, strict=True)])

    def initialise(self, z, key, batches=1, *, axis_name=None):
        found: list[jax.Array] = []
        for i, (stage, part) in enumerate(
            zip(self.stages, self._split(self.prepare(z)), strict=True)
        ):
            y = self._level(i, part, found)
            stage.initialise(y, jax.random.fold_in(key, i), batches, axis_name=axis_name)
            found.append(stage(y)[0])

    def update(self, z, codes, key, *, axis_name=None):
        found: list[jax.Array] = []
        masks = {}
        latents, all_codes = self._split(self.prepare(z)), self._split(codes)
        # All levels are looked up before any entry changes.
        looked_up = [s.lookup(c) for s, c in zip(self.stages, all_codes, strict=True)]
        for i, (stage, part) in enumerate(zip(self.stages, latents, strict=True)):
            y = self._level(i, part, found)
            found.append(looked_up[i])
            masks[f"stages_{i}"] = stage.update(
                y, all_codes[i], jax.random.fold_in(key, i), axis_name=axis_name
            )
        return masks

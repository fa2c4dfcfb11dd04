"""A sum of codes, each of which quantizes the residual of those before: `residual`."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp

from vq_jax.bounds import Bounds
from vq_jax.quantizers import functions
from vq_jax.quantizers.base import Quantizer


class ResidualQuantizer(Quantizer):
    """A sum of codes, where each code quantizes the residual of the codes before it.

    See Lee et al. 2022, eq. 3-4, and Zeghidour et al. 2021, algorithm 1.

    Level i quantizes the residual divided by `inner.residual_scale`^i. The losses are summed over
    the levels. `lookup` also accepts the codes of the first levels only, which gives coarser
    latents from fewer bits.

    The gradient that a level's output and loss send to the latent is divided by the number of
    levels that the image keeps. Straight-through levels together therefore act as one
    straight-through estimator. The gradient to a level's own entries is not divided.

    Attributes:
      inner: quantizer of one level, with one code per latent and no projection.
      levels: number of codes per latent.
      shared: whether all levels share one set of params and statistics.
      dropout: share of the images that keep only a random number of levels in training, from 1 to
        `levels` (quantizer dropout, Zeghidour et al. 2021, sec. III-C). The levels that an image
        leaves out are still trained on it.
    """

    inner: Any = None
    levels: int = 4
    shared: bool = False
    dropout: Annotated[float, Bounds(0, 1)] = 0.0

    def setup(self):
        inner = self.inner
        if self.levels < 1:
            raise ValueError(f"quantizer.levels is {self.levels}: use 1 or more")
        if inner.residual_scale is None:
            raise ValueError(
                f"quantizer.inner ({type(inner).__name__}) cannot be a level: a level needs one "
                "code per latent and compares latents without a transformation (for vq: heads=1, "
                "code_dim=0, distance='l2')"
            )
        if self.shared:
            self.stages = [inner] * self.levels
        else:
            self.stages = [inner.clone(parent=None, name=None) for _ in range(self.levels)]

    @property
    def num_codes(self) -> int:
        return self.inner.num_codes

    @property
    def dim(self) -> int:
        return self.inner.dim

    @property
    def code_shape(self) -> tuple[int, ...]:
        return (self.levels,)

    @property
    def radices(self) -> tuple[int, ...]:
        return self.inner.radices

    @property
    def residual_scale(self) -> Any:
        return None

    @property
    def takes_fewer_codes(self) -> bool:
        return True

    def _scale(self, level: int):
        """Returns the scale of a level's residuals, a float or float32 [D]."""
        return self.inner.residual_scale**level

    def prepare(self, z: jax.Array) -> jax.Array:
        return self.stages[0].prepare(z)

    def assign(self, y, *, key, scheduled, axis_name):
        kept_levels = self._kept_levels(y, key, axis_name)
        total = kept_total = path = jnp.zeros_like(y)
        # Every level sends a gradient to y, so each sends only its share.
        y_shared_gradient = functions.with_gradient_of(y, y / kept_levels)
        all_codes, all_aux = [], []
        for i, stage in enumerate(self.stages):
            scale = self._scale(i)
            level_key = None if key is None else jax.random.fold_in(key, i)
            residual = (y_shared_gradient - total) / scale
            z_q, codes, aux = stage.assign(
                residual, key=level_key, scheduled=scheduled, axis_name=axis_name
            )
            constant_z_q = scale * jax.lax.stop_gradient(z_q)
            total += constant_z_q
            kept_total += jnp.where(i < kept_levels, constant_z_q, 0.0)
            path += jnp.where(i < kept_levels, scale * z_q, 0.0)
            all_codes.append(codes)
            all_aux.append(aux)
        aux = jax.tree.map(lambda *a: jnp.stack(a), *all_aux)
        aux = {name: a if name == "counts" else a.sum() for name, a in aux.items()}
        z_q = functions.with_gradient_of(kept_total, path)
        return z_q, jnp.stack(all_codes, axis=-1), aux

    def _kept_levels(self, y: jax.Array, key: jax.Array | None, axis_name: str | None):
        """Returns the number of levels that each image keeps, broadcastable to the latents."""
        if key is None or not self.dropout:
            return self.levels
        dropout_key = jax.random.fold_in(key, self.levels)  # the levels use 0 to levels - 1
        kept_B = functions.draw_kept(dropout_key, y.shape[0], self.levels, self.dropout, axis_name)
        return kept_B.reshape(-1, *(1 for _ in y.shape[1:]))

    def lookup(self, codes: jax.Array) -> jax.Array:
        total = jnp.zeros((*codes.shape[:-1], self.dim))
        for i in range(codes.shape[-1]):
            total += self._scale(i) * self.stages[i].lookup(codes[..., i])
        return total

    def codebooks(self) -> jax.Array | None:
        books = [stage.codebooks() for stage in self.stages]
        if books[0] is None:
            return None
        return jnp.stack([self._scale(i) * book for i, book in enumerate(books)])

    def initialise(self, z, key, batches=1, *, axis_name=None):
        y = self.prepare(z)
        for i, stage in enumerate(self.stages):
            residual = y / self._scale(i)
            if i == 0 or not self.shared:
                stage.initialise(residual, jax.random.fold_in(key, i), batches, axis_name=axis_name)
            _, codes, _ = stage.assign(residual, key=None, scheduled={}, axis_name=axis_name)
            y = y - self._scale(i) * stage.lookup(codes)

    def update(self, z, codes, key, *, axis_name=None):
        y = self.prepare(z)
        residuals = []
        for i, stage in enumerate(self.stages):
            residuals.append(y / self._scale(i))
            y = y - self._scale(i) * stage.lookup(codes[..., i])
        if self.shared:
            # The level axis follows the image axis, so that the rows of all devices together have
            # the same order as on one device.
            rows, level_codes = jnp.stack(residuals, axis=1), jnp.moveaxis(codes, -1, 1)
            return {"inner": self.stages[0].update(rows, level_codes, key, axis_name=axis_name)}
        masks = {}
        for i, (stage, residual) in enumerate(zip(self.stages, residuals, strict=True)):
            level_key = jax.random.fold_in(key, i)
            masks[f"stages_{i}"] = stage.update(
                residual, codes[..., i], level_key, axis_name=axis_name
            )
        return masks

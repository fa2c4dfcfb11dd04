"""Quantizers that quantize what earlier codes left: `residual` and `multiscale`."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vq_jax.quantizers import functions
from vq_jax.quantizers.base import Quantizer, pull


class ResidualQuantizer(Quantizer):
    """A sum of codes, each for what those before it left (Lee et al. 2022, eq. 3-4; Zeghidour et al.
    2021, algorithm 1).

    Level i quantizes the residual over `inner.residual_scale`^i. The losses are the levels' sums. Of
    what a level's output and loss send back to the latent one part in `levels` counts, so that
    straight-through levels together are straight through; a level's own entries get all of theirs.
    `lookup` takes the first levels' codes too: fewer bits, coarser.

    Attributes:
      inner: the quantizer of one level, with one code a latent and no projection.
      levels: how many codes a latent gets.
      shared: one set of params and statistics for all levels.
      dropout: share of the images, in training, that keep a random number of levels only, 1 to
        `levels` (quantizer dropout, Zeghidour et al. 2021, sec. III-C). The levels left out go on
        learning.
    """

    inner: Any = None
    levels: int = 4
    shared: bool = False
    dropout: float = 0.0

    def setup(self):
        inner = self.inner
        if self.levels < 1:
            raise ValueError(f"quantizer.levels is {self.levels}: use 1 or more")
        if inner.residual_scale is None:
            raise ValueError(
                "quantizer.inner cannot be a level: that takes one code for a latent, compared as it "
                "is (of vq: heads=1, code_dim=0, distance='l2')"
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
    def residual_scale(self) -> Any:
        return None

    @property
    def takes_fewer_codes(self) -> bool:
        return True

    def _scale(self, level: int):
        return self.inner.residual_scale**level

    def prepare(self, z: jax.Array) -> jax.Array:
        return self.stages[0].prepare(z)

    def assign(self, y, *, key, now, axis_name):
        kept = self._kept(y, key, axis_name)
        total = kept_total = path = jnp.zeros_like(y)
        part_of_y = functions.with_gradient_of(y, y / kept)
        all_codes, all_aux = [], []
        for i, stage in enumerate(self.stages):
            scale = self._scale(i)
            level_key = None if key is None else jax.random.fold_in(key, i)
            residual = (part_of_y - total) / scale
            z_q, codes, aux = stage.assign(residual, key=level_key, now=now, axis_name=axis_name)
            part = scale * jax.lax.stop_gradient(z_q)
            total += part
            kept_total += jnp.where(i < kept, part, 0.0)
            path += jnp.where(i < kept, scale * z_q, 0.0)
            all_codes.append(codes)
            all_aux.append(aux)
        aux = jax.tree.map(lambda *a: jnp.stack(a), *all_aux)
        aux = {name: a if name == "counts" else a.sum() for name, a in aux.items()}
        z_q = functions.with_gradient_of(kept_total, path)
        return z_q, jnp.stack(all_codes, axis=-1), aux

    def _kept(self, y: jax.Array, key: jax.Array | None, axis_name: str | None):
        """How many levels each image keeps, broadcasting to the latents."""
        if key is None or not self.dropout:
            return self.levels

        def draw(key):
            some, how_many = jax.random.split(key)
            few = jax.random.randint(how_many, (), 1, self.levels + 1)
            return jnp.where(jax.random.bernoulli(some, self.dropout), few, self.levels)

        image_key = jax.random.fold_in(key, self.levels)
        kept_B = jax.vmap(draw)(functions.row_keys(image_key, y.shape[0], axis_name))
        return kept_B.reshape(-1, *(1 for _ in y.shape[1:]))

    def lookup(self, codes: jax.Array) -> jax.Array:
        total = jnp.zeros((*codes.shape[:-1], self.dim))
        for i in range(codes.shape[-1]):
            total += self._scale(i) * self.stages[i].lookup(codes[..., i])
        return total

    def codebooks(self) -> jax.Array | None:
        each = [stage.codebooks() for stage in self.stages]
        return (
            None if each[0] is None else jnp.stack([self._scale(i) * e for i, e in enumerate(each)])
        )

    def initialise(self, z, key, batches=1, *, axis_name=None):
        y = self.prepare(z)
        for i, stage in enumerate(self.stages):
            residual = y / self._scale(i)
            if i == 0 or not self.shared:
                stage.initialise(residual, jax.random.fold_in(key, i), batches, axis_name=axis_name)
            _, codes, _ = stage.assign(residual, key=None, now={}, axis_name=axis_name)
            y = y - self._scale(i) * stage.lookup(codes)

    def update(self, z, codes, key, *, axis_name=None):
        y = self.prepare(z)
        residuals = []
        for i, stage in enumerate(self.stages):
            residuals.append(y / self._scale(i))
            y = y - self._scale(i) * stage.lookup(codes[..., i])
        if self.shared:
            # All levels' rows of an image together, so that the order over devices is one device's.
            rows, chosen = jnp.stack(residuals, axis=1), jnp.moveaxis(codes, -1, 1)
            return {"inner": self.stages[0].update(rows, chosen, key, axis_name=axis_name)}
        new = {}
        for i, (stage, residual) in enumerate(zip(self.stages, residuals, strict=True)):
            level_key = jax.random.fold_in(key, i)
            mine = stage.update(residual, codes[..., i], level_key, axis_name=axis_name)
            new[f"stages_{i}"] = mine
        return new


class MultiscaleQuantizer(Quantizer):
    """A pyramid of code maps, coarse to fine, each for what the coarser ones left (Tian et al. 2024,
    algorithms 1 and 2).

    At each scale the residual is averaged down to side x side, quantized by the one codebook,
    enlarged (bicubic) and passed through one of a few 3x3 convolutions; the sum so far is what the
    next scale starts from. Codes are int32 [B, L], scale after scale, row by row, L = sum of side^2.
    The loss is the mean over scales of |f - sg z|^2 + beta |sg f - z|^2, f the sum so far; with an
    EMA codebook the first term trains the convolutions only. The latents' grid is that of the last
    scale.

    Attributes:
      num_codes: K.
      dim: D.
      scales: the sides, growing; the last is the latents' grid.
      convolutions: how many 3x3 convolutions the scales share.
      convolution_share: how much of an enlarged map goes through its convolution; the rest passes.
      distance, codebook, estimator, beta: as `VectorQuantizer`'s (no "gumbel", no "mapped").
      decay, kmeans_iterations, revive_below: see `base.Codebook`.
    """

    num_codes: int = 512
    dim: int = 16
    scales: tuple[int, ...] = (1, 2, 4, 8)
    convolutions: int = 4
    convolution_share: float = 0.5
    distance: str = "l2"
    codebook: str = "ema"
    estimator: str = "straight_through"
    beta: float = 0.25
    decay: float = 0.99
    kmeans_iterations: int = 10
    revive_below: float = 0.01

    @property
    def residual_scale(self) -> Any:
        return None

    def setup(self):
        sides = tuple(self.scales)
        if not sides or sides[0] < 1 or sides != tuple(sorted(set(sides))):
            raise ValueError(f"quantizer.scales is {sides}: sides of 1 or more that grow")
        self.check_choices(
            codebook=("ema", "gradient"),
            distance=("l2", "cosine"),
            estimator=tuple(functions.ESTIMATORS),
        )
        self.book = self.make_book(dim=self.dim, rule=self.codebook)
        self.blends = [
            nn.Conv(self.dim, (3, 3), kernel_init=_identity_kernel, precision="highest")
            for _ in range(self.convolutions)
        ]

    def _blend(self, i: int, h_BHWD: jax.Array) -> jax.Array:
        """The enlarged map of scale i, partly through the convolution nearest to its place."""
        if not self.convolutions:
            return h_BHWD
        count = self.convolutions
        edge = 1 / (3 if count == 4 else 2) / count  # as in the authors' code
        places = np.linspace(edge, 1 - edge, count)
        blend = self.blends[np.abs(places - i / max(1, len(self.scales) - 1)).argmin()]
        share = self.convolution_share
        return (1 - share) * h_BHWD + share * blend(h_BHWD)

    def _walk(self, batch: int, y_BHWD: Any, codes_BL: jax.Array | None = None):
        """Scale by scale: the residual's rows [B, l, D], their codes [B, l], the sum so far
        [B, H, W, D].

        Without latents (None) there are no rows; without codes they are searched.
        """
        grid = self.scales[-1]
        entries_KD = self.book.entries()[0]
        if self.codebook == "ema":
            entries_KD = jax.lax.stop_gradient(entries_KD)
        unit = functions.normalise if self.distance == "cosine" else lambda x: x
        total_BHWD, start = jnp.zeros((batch, grid, grid, self.dim)), 0
        for i, side in enumerate(self.scales):
            rows_BlD: Any = None
            if y_BHWD is not None:
                residual = jax.lax.stop_gradient(y_BHWD - total_BHWD)
                small = _resize(residual, area_matrix(grid, side))
                rows_BlD = small.reshape(batch, side**2, self.dim)
            if codes_BL is None:
                codes_Bl = functions.nearest_codes(unit(rows_BlD), unit(entries_KD))
            else:
                codes_Bl = codes_BL[:, start : start + side**2]
            coarse = entries_KD[codes_Bl].reshape(batch, side, side, self.dim)
            total_BHWD += self._blend(i, _resize(coarse, bicubic_matrix(side, grid)))
            start += side**2
            yield rows_BlD, codes_Bl, total_BHWD

    def assign(self, y, *, key, now, axis_name):
        del key
        if y.ndim != 4 or y.shape[1:3] != (self.scales[-1],) * 2:
            grid = "x".join(map(str, y.shape[1:-1]))
            raise ValueError(
                f"the latents' grid is {grid}, and quantizer.scales {tuple(self.scales)} must end "
                "with its side"
            )
        all_codes, to_entries, to_latents = [], [], []
        for _, codes_Bl, total in self._walk(y.shape[0], y):
            all_codes.append(codes_Bl)
            to_entries.append(pull(y, total))
            to_latents.append(pull(total, y))
        codes = jnp.concatenate(all_codes, axis=1)
        aux = {
            "commitment": jnp.stack(to_entries).mean(),
            "codebook": jnp.stack(to_latents).mean(),
            "counts": self.count(codes, axis_name),
        }
        aux["loss"] = aux["codebook"] + self.value(now, "beta") * aux["commitment"]
        return functions.ESTIMATORS[self.estimator](y, total), codes, aux

    def lookup(self, codes: jax.Array) -> jax.Array:
        *_, (_, _, total) = self._walk(codes.shape[0], None, codes)
        return total

    def codebooks(self) -> jax.Array:
        return self.book.entries()[0]

    def initialise(self, z, key, batches=1, *, axis_name=None):
        # The rows that a perfect codebook would meet: every coarser scale coded without error.
        rest, rows, grid = self.prepare(z), [], self.scales[-1]
        for side in self.scales:
            coarse = _resize(rest, area_matrix(grid, side))
            rows.append(coarse.reshape(len(coarse), -1, self.dim))
            rest = rest - _resize(coarse, bicubic_matrix(side, grid))
        rows_CMD = jnp.concatenate(rows, axis=1).reshape(1, -1, self.dim)
        self.book.initialise(rows_CMD, key, batches, axis_name)

    def update(self, z, codes, key, *, axis_name=None):
        y = self.prepare(z)
        walked = [(rows, chosen) for rows, chosen, _ in self._walk(y.shape[0], y, codes)]
        rows_BLD, codes_BL = (jnp.concatenate(part, axis=1) for part in zip(*walked, strict=True))
        rows_CMD, codes_CM = rows_BLD.reshape(1, -1, self.dim), codes_BL.reshape(1, -1)
        return {"book": self.book.update(rows_CMD, codes_CM, key, axis_name)}


def _identity_kernel(key, shape, dtype=jnp.float32) -> jax.Array:
    """A convolution that changes nothing, to start from."""
    del key
    middle = (shape[0] // 2, shape[1] // 2)
    return jnp.zeros(shape, dtype).at[middle].set(jnp.eye(shape[2], shape[3], dtype=dtype))


def _resize(x_BHWD: jax.Array, matrix_SH: np.ndarray) -> jax.Array:
    """Both sides through one matrix: [B, H, H, D] -> [B, S, S, D]."""
    return jnp.einsum(
        "sh,bhwd,tw->bstd", matrix_SH, x_BHWD, matrix_SH, precision="highest", optimize="optimal"
    )


def area_matrix(size: int, smaller: int) -> np.ndarray:
    """Averages over the cells that each of `smaller` parts touches: float32 [smaller, size]."""
    matrix = np.zeros((smaller, size), np.float32)
    for i in range(smaller):
        start, stop = i * size // smaller, -(-(i + 1) * size // smaller)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix


def bicubic_matrix(size: int, larger: int) -> np.ndarray:
    """Bicubic enlargement (Keys 1981, a = -3/4), edges repeated: float32 [larger, size]."""
    a = -0.75
    matrix = np.zeros((larger, size), np.float32)
    for i in range(larger):
        place = (i + 0.5) * size / larger - 0.5
        first = int(np.floor(place)) - 1
        for j in range(first, first + 4):
            x = abs(place - j)
            near = (a + 2) * x**3 - (a + 3) * x**2 + 1
            far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
            matrix[i, min(max(j, 0), size - 1)] += near if x <= 1 else far
    return matrix

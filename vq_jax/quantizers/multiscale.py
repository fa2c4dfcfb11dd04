"""A pyramid of code maps from coarse to fine: `multiscale`."""

from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vq_jax.bounds import Bounds
from vq_jax.quantizers import functions
from vq_jax.quantizers.base import Quantizer, l2_to_constant


class MultiscaleQuantizer(Quantizer):
    """A pyramid of code maps from coarse to fine, where each map quantizes the remaining residual.

    See Tian et al. 2024, algorithms 1 and 2. At each scale the residual is averaged down to
    side x side and quantized. All scales use one codebook. The quantized map is enlarged (bicubic)
    and passed through one of a few 3x3 convolutions. The result is added to the sum of the coarser
    scales, and the next scale quantizes the new residual.

    Codes are int32 [B, L], ordered scale by scale and row by row, with L = sum of side^2. The grid
    of the latents is that of the last scale.

    The loss is the mean over scales of |f - sg z|^2 + beta |sg f - z|^2, where f is the sum so far
    and sg is stop_gradient. With an EMA codebook, the first term trains only the convolutions.

    Attributes:
      num_codes: K.
      dim: D.
      scales: increasing sides; the last is the side of the latents' grid.
      convolutions: number of 3x3 convolutions, which the scales share; 0 for none.
      convolution_share: weight of the convolution's output; its input has weight 1 minus this.
      distance, codebook, estimator, beta: as in `VectorQuantizer`, without "gumbel" and "mapped".
      decay, kmeans_iterations, revive_below: see `base.Codebook`.
    """

    num_codes: Annotated[int, Bounds(2)] = 512
    dim: Annotated[int, Bounds(1)] = 16
    scales: tuple[int, ...] = (1, 2, 4, 8)
    convolutions: Annotated[int, Bounds(0)] = 4
    convolution_share: Annotated[float, Bounds(0, 1)] = 0.5
    distance: str = "l2"
    codebook: str = "ema"
    estimator: str = "straight_through"
    beta: Annotated[float, Bounds(0)] = 0.25
    decay: Annotated[float, Bounds(0, 1)] = 0.99
    kmeans_iterations: Annotated[int, Bounds(0)] = 10
    revive_below: Annotated[float, Bounds(0, 1)] = 0.01

    @property
    def residual_scale(self) -> Any:
        return None

    @property
    def grids(self) -> tuple[tuple[int, ...], ...]:
        return tuple((side, side) for side in self.scales)

    def setup(self):
        sides = tuple(self.scales)
        if not sides or sides[0] < 1 or sides != tuple(sorted(set(sides))):
            raise ValueError(f"quantizer.scales is {sides}: use increasing sides of 1 or more")
        self.check_choices(
            codebook=("ema", "gradient"),
            distance=("l2", "cosine"),
            estimator=tuple(functions.ESTIMATORS),
        )
        self.book = self.make_codebook(dim=self.dim, rule=self.codebook)
        self.blends = [
            nn.Conv(self.dim, (3, 3), kernel_init=_identity_kernel, precision="highest")
            for _ in range(self.convolutions)
        ]

    def _blend(self, i: int, h_BHWD: jax.Array) -> jax.Array:
        """Mixes the enlarged map of scale i with its convolution.

        Scales and convolutions have positions in [0, 1], and a scale uses the nearest convolution.
        """
        if not self.convolutions:
            return h_BHWD
        share = self.convolution_share
        return (1 - share) * h_BHWD + share * self._convolution(i)(h_BHWD)

    def _convolution(self, i: int) -> nn.Conv:
        """Returns the convolution of scale i."""
        count = self.convolutions
        edge = 1 / (3 if count == 4 else 2) / count  # as in the authors' code
        positions = np.linspace(edge, 1 - edge, count)
        return self.blends[np.abs(positions - i / max(1, len(self.scales) - 1)).argmin()]

    def pyramid(self) -> dict[str, jax.Array]:
        """Returns what turns codes into the sum of the scales so far, for a next-scale prior.

        Returns:
          `entries` float32 [K, D]; for each scale, the convolution that its enlarged map goes through:
          `kernels` float32 [S, 3, 3, D, D] and `biases` float32 [S, D].
        """
        share = self.convolution_share if self.convolutions else 0.0
        kernels, biases = [], []
        for i in range(len(self.scales)):
            kernel = (1 - share) * _identity_kernel(None, (3, 3, self.dim, self.dim))
            bias = jnp.zeros(self.dim)
            if self.convolutions:
                params = self._convolution(i).variables["params"]
                kernel += share * params["kernel"]
                bias += share * params["bias"]
            kernels.append(kernel)
            biases.append(bias)
        entries_KD = self.book.entries()[0]
        return {"entries": entries_KD, "kernels": jnp.stack(kernels), "biases": jnp.stack(biases)}

    def _iterate_scales(self, batch: int, y_BHWD: Any, codes_BL: jax.Array | None = None):
        """Quantizes or decodes scale by scale.

        Args:
          batch: B.
          y_BHWD: prepared latents, float32 [B, H, W, D]. None only decodes `codes_BL`.
          codes_BL: codes, int32 [B, L]. None searches the nearest codes.

        Yields:
          For each scale: the rows of the residual [B, l, D] (None without latents), their codes
          [B, l], and the sum so far [B, H, W, D].
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
                coarse_residual = resize(residual, area_matrix(grid, side))
                rows_BlD = coarse_residual.reshape(batch, side**2, self.dim)
            if codes_BL is None:
                codes_Bl = functions.nearest_codes(unit(rows_BlD), unit(entries_KD))
            else:
                codes_Bl = codes_BL[:, start : start + side**2]
            coarse = entries_KD[codes_Bl].reshape(batch, side, side, self.dim)
            total_BHWD += self._blend(i, resize(coarse, bicubic_matrix(side, grid)))
            start += side**2
            yield rows_BlD, codes_Bl, total_BHWD

    def assign(self, y, *, key, scheduled, axis_name):
        del key
        if y.ndim != 4 or y.shape[1:3] != (self.scales[-1],) * 2:
            grid = "x".join(map(str, y.shape[1:-1]))
            raise ValueError(
                f"the latents' grid is {grid}, but quantizer.scales is {tuple(self.scales)}: make "
                "its last value the side of a square grid"
            )
        all_codes, commitment_losses, codebook_losses = [], [], []
        for _, codes_Bl, total in self._iterate_scales(y.shape[0], y):
            all_codes.append(codes_Bl)
            commitment_losses.append(l2_to_constant(y, total))
            codebook_losses.append(l2_to_constant(total, y))
        codes = jnp.concatenate(all_codes, axis=1)
        aux = {
            "commitment": jnp.stack(commitment_losses).mean(),
            "codebook": jnp.stack(codebook_losses).mean(),
            "counts": self.count(codes, axis_name),
        }
        aux["loss"] = aux["codebook"] + self.value(scheduled, "beta") * aux["commitment"]
        return functions.ESTIMATORS[self.estimator](y, total), codes, aux

    def lookup(self, codes: jax.Array) -> jax.Array:
        *_, (_, _, total) = self._iterate_scales(codes.shape[0], None, codes)
        return total

    def codebooks(self) -> jax.Array:
        return self.book.entries()[0]

    def initialise(self, z, key, batches=1, *, axis_name=None):
        # These are the rows that result if each coarser scale is quantized without error.
        residual, rows, grid = self.prepare(z), [], self.scales[-1]
        for side in self.scales:
            coarse = resize(residual, area_matrix(grid, side))
            rows.append(coarse.reshape(len(coarse), -1, self.dim))
            residual = residual - resize(coarse, bicubic_matrix(side, grid))
        rows_CMD = jnp.concatenate(rows, axis=1).reshape(1, -1, self.dim)
        self.book.initialise(rows_CMD, key, batches, axis_name)

    def update(self, z, codes, key, *, axis_name=None):
        y = self.prepare(z)
        scales = [(rows, chosen) for rows, chosen, _ in self._iterate_scales(y.shape[0], y, codes)]
        rows_BLD, codes_BL = (jnp.concatenate(part, axis=1) for part in zip(*scales, strict=True))
        rows_CMD, codes_CM = rows_BLD.reshape(1, -1, self.dim), codes_BL.reshape(1, -1)
        return {"book": self.book.update(rows_CMD, codes_CM, key, axis_name)}


def _identity_kernel(key, shape, dtype=jnp.float32) -> jax.Array:
    """Initialises a convolution kernel to the identity."""
    del key
    middle = (shape[0] // 2, shape[1] // 2)
    return jnp.zeros(shape, dtype).at[middle].set(jnp.eye(shape[2], shape[3], dtype=dtype))


def resize(x_BHWD: jax.Array, matrix_SH: np.ndarray) -> jax.Array:
    """Resizes both sides with one matrix: [B, H, H, D] -> [B, S, S, D]."""
    return jnp.einsum(
        "sh,bhwd,tw->bstd", matrix_SH, x_BHWD, matrix_SH, precision="highest", optimize="optimal"
    )


def area_matrix(size: int, smaller: int) -> np.ndarray:
    """Returns the matrix that averages `size` cells down to `smaller`: float32 [smaller, size].

    Each output is the mean over all cells that its part of the input overlaps.
    """
    matrix = np.zeros((smaller, size), np.float32)
    for i in range(smaller):
        start, stop = i * size // smaller, -(-(i + 1) * size // smaller)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix


def bicubic_matrix(size: int, larger: int) -> np.ndarray:
    """Returns the matrix of bicubic enlargement (Keys 1981, a = -3/4): float32 [larger, size].

    Cells beyond the edges repeat the edge cells.
    """
    a = -0.75
    matrix = np.zeros((larger, size), np.float32)
    for i in range(larger):
        position = (i + 0.5) * size / larger - 0.5
        first = int(np.floor(position)) - 1
        for j in range(first, first + 4):
            x = abs(position - j)
            near = (a + 2) * x**3 - (a + 3) * x**2 + 1
            far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
            matrix[i, min(max(j, 0), size - 1)] += near if x <= 1 else far
    return matrix

"""Integers whose rate is learned with them: `integer`."""

from typing import Annotated

import jax
import jax.numpy as jnp

from vq_jax.bounds import Bounds
from vq_jax.quantizers import functions
from vq_jax.quantizers.base import Quantizer
from vq_jax.quantizers.context import LARGEST, QUALITIES, Context, bits


class IntegerQuantizer(Quantizer):
    """Rounds every dimension to an integer, and charges the bits that coding it takes.

    A network predicts each integer from those around it (`context`), and
    the loss is the number of bits of a latent under these predictions, of latents with uniform noise in place
    of rounding (Balle et al. 2017, eq. 11). The decoder gets rounded latents.

    A latent has `dim` codes, integers plus `largest`. The entropy model "context" of the codec codes
    them by the same network.

    Attributes:
      num_codes: number of integers, odd to be symmetric; those beyond are clipped.
      dim: D.
      step: latents are divided by it before they are rounded.
      first: number of dimensions, the first, that are coded before the others. They should tell most about
        an image.
      width: of the networks that predict.
    """

    num_codes: Annotated[int, Bounds(3, 2 * LARGEST + 1)] = 2 * LARGEST + 1
    dim: int = 96
    step: Annotated[float, Bounds(1e-6)] = 1.0
    first: Annotated[int, Bounds(1)] = 12
    width: Annotated[int, Bounds(2)] = 64

    takes_quality = True

    def setup(self):
        if self.first >= self.dim:
            raise ValueError(
                f"quantizer.first is {self.first}: use fewer than quantizer.dim, {self.dim}"
            )
        self.context = Context(self.dim, self.first, self.width)

    @property
    def largest(self) -> int:
        """The largest integer, up or down."""
        return (self.num_codes - 1) // 2

    def dims(self, stage: int) -> slice:
        """The dimensions that a stage of the context codes."""
        return slice(0, self.first) if stage < 3 else slice(self.first, self.dim)

    @property
    def code_shape(self) -> tuple[int, ...]:
        return (self.dim,)

    @property
    def residual_scale(self):
        return None

    def __call__(self, z, *, key=None, scheduled=None, axis_name=None, quality=None):
        """Quantizes latents; see `Quantizer.__call__`.

        Args:
          quality: float32 [B] in [0, 1], which the network is told; None is 1/2.
        """
        del scheduled
        y = z.astype(jnp.float32) / self.step
        half = self.largest
        rounded = jnp.clip(jnp.round(jax.lax.stop_gradient(y)), -half, half)
        if key is None:
            noisy = functions.straight_through(y, rounded)
        else:
            keys = functions.row_keys(key, len(y), axis_name)
            noise = jax.vmap(lambda k: jax.random.uniform(k, y.shape[1:], minval=-0.5, maxval=0.5))
            noisy = jnp.clip(y, -half, half) + noise(keys)
        mean, scale = self.predict(rounded, quality)
        rate = bits(self._grid(noisy), mean, scale).sum(-1).mean()
        codes = (rounded + half).astype(jnp.int32)
        aux = {"loss": rate, "rate": rate, "counts": self.count(codes, axis_name)}
        return self.step * functions.straight_through(y, rounded), codes, aux

    def predict(
        self, y: jax.Array, quality: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Predicts integers y, float32 [B, ..., D]: means and scales, see `Context`; [B', H, W, D]."""
        grid = self._grid(y)
        return self.context(grid, quality_index(quality, len(y), len(grid)))

    def predict_stage(
        self, y: jax.Array, quality: jax.Array, stage: int, inside: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Predicts integers y, float32 [B, H, W, D], of one stage; see `Context.stage`."""
        return self.context.stage(stage, y, quality_index(quality, len(y), len(y)), inside)

    @staticmethod
    def _grid(y: jax.Array) -> jax.Array:
        """Latents [B, ..., D] as grids [B', H, W, D]: frames become examples, a vector a grid of one."""
        axes = (1, 1, *y.shape[1:-1])[-2:]
        return y.reshape(-1, *axes, y.shape[-1])

    def lookup(self, codes: jax.Array) -> jax.Array:
        return self.step * (codes.astype(jnp.float32) - self.largest)


def quality_index(quality: jax.Array | None, examples: int, grids: int) -> jax.Array:
    """Returns qualities in [0, 1] as the integers that the network takes, float32 [grids]."""
    if quality is None:
        quality = jnp.full(examples, 0.5)
    half = QUALITIES // 2
    index = jnp.round(jnp.clip(quality, 0, 1) * (2 * half)) - half
    return jnp.repeat(index, grids // examples)

"""A transform of squares of 8x8 pixels for compression, which starts as that of JPEG.

A linear map and a few residual blocks beside it turn each square into a latent. The map starts as a discrete
cosine transform and the blocks at 0, so that training begins with a working codec. The step by which latents
are divided, before they are rounded, depends on the quality: one model covers a range of rates (after Choi et
al. 2019 and Cui et al. 2021), and its blocks are told the quality.
"""

from collections.abc import Callable
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vq_jax.bounds import Bounds
from vq_jax.models.layers import Dtype, conv
from vq_jax.models.transforms import cosine_basis, from_patches, to_patches

SIDE = 8  # pixels of a square


class _Block(nn.Module):
    """A residual block whose features are scaled by functions of the quality."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, terms_B11Q: jax.Array) -> jax.Array:
        width, zeros = x.shape[-1], nn.initializers.zeros
        scale = nn.Dense(width, kernel_init=zeros, dtype=self.dtype, name="scale")(terms_B11Q)
        h = nn.relu(conv(width, 3, dtype=self.dtype, name="conv1")(nn.relu(x)))
        h = h * (1 + scale)
        return x + conv(width, 3, dtype=self.dtype, name="conv2", kernel_init=zeros)(h)


class _Tower(nn.Module):
    """What encoder and decoder have in common."""

    dim: int
    width: int
    blocks: int
    coarsest: float
    finest: float
    dtype: Dtype

    takes_quality = True
    strides = (SIDE, SIDE)

    def setup(self):
        zeros = nn.initializers.zeros
        self.log_gain = self.param("log_gain", zeros, (self.dim,))
        self.slope = self.param("slope", zeros, (self.dim,))

    @property
    def margin(self) -> int:
        """Distance in pixels beyond a square at which other squares still change its latent or its pixels."""
        return 2 * self.blocks * SIDE

    def step(self, quality_B: jax.Array) -> jax.Array:
        """Returns the step of latents, float32 [B]."""
        return self.coarsest * (self.finest / self.coarsest) ** quality_B

    def distortion_weight(self, quality_B: jax.Array) -> jax.Array:
        """Returns the weight of the squared error, relative to the rate, float32 [B].

        For uniform quantization at high rates, the error grows by (log(4) / 12) step^2 a bit that is saved:
        the weight is in proportion to 1 / step^2.
        """
        return self.step(quality_B) ** -2

    def _quality(self, quality_B: jax.Array | None, examples: int) -> jax.Array:
        given = jnp.full(examples, 0.5) if quality_B is None else quality_B
        return given[:, None, None, None].astype(jnp.float32)

    def _gain(self, quality_B111: jax.Array) -> jax.Array:
        """A factor of each dimension, 1 at the start."""
        return jnp.exp(self.log_gain + self.slope * (quality_B111 - 0.5))

    def _linear(self, features: int, basis: Callable[[], np.ndarray]) -> nn.Dense:
        """A linear map that starts as `basis`, which is computed for that only."""
        return nn.Dense(
            features,
            kernel_init=lambda *_: jnp.asarray(basis()),
            dtype=jnp.float32,
            name="linear",
        )

    def _residuals(self, x: jax.Array, quality_B111: jax.Array) -> jax.Array:
        terms = jnp.concatenate([quality_B111, quality_B111**2], axis=-1)
        h = conv(self.width, 1, dtype=self.dtype, name="conv_in")(x)
        h = h + nn.Dense(self.width, dtype=self.dtype, name="quality")(terms)
        for i in range(self.blocks):
            h = _Block(self.dtype, name=f"block_{i}")(h, terms)
        return nn.relu(h)


class Encoder(_Tower):
    """Images float [B, H, W, C] to latents in steps, float32 [B, H / 8, W / 8, dim]."""

    @nn.compact
    def __call__(self, x: jax.Array, quality: jax.Array | None = None) -> jax.Array:
        q, patches = self._quality(quality, len(x)), to_patches(x, SIDE)
        z = self._linear(self.dim, lambda: cosine_basis(self.strides, x.shape[-1], self.dim))(
            patches
        )
        h = self._residuals(patches, q)
        zeros = nn.initializers.zeros
        z += nn.Dense(self.dim, kernel_init=zeros, dtype=self.dtype, name="out")(h)
        return z.astype(jnp.float32) * self._gain(q) / self.step(q)


class Decoder(_Tower):
    """Latents in steps, float [B, H / 8, W / 8, dim], to images float32 [B, H, W, channels]."""

    channels: int

    def setup(self):
        super().setup()
        zeros = nn.initializers.zeros
        self.out = nn.Dense(self.channels * SIDE**2, kernel_init=zeros, dtype=self.dtype)

    @nn.compact
    def features(self, z: jax.Array, quality: jax.Array | None = None) -> jax.Array:
        """Everything before the last layer; the pixels of the linear map follow the features."""
        q = self._quality(quality, len(z))
        y = z * self.step(q) * self._gain(q)
        values = self.channels * SIDE**2
        pixels = self._linear(
            values, lambda: cosine_basis(self.strides, self.channels, self.dim).T
        )(y)
        return jnp.concatenate([self._residuals(y, q).astype(jnp.float32), pixels], axis=-1)

    def sensitivity(self, quality: jax.Array) -> jax.Array:
        """Returns the squared error of an image in squared steps for an error of one step, float32 [dim].

        The blocks are left out.

        Args:
          quality: float32 [].
        """
        kernel = self.variables["params"]["linear"]["kernel"]
        gain = self._gain(quality.reshape(1, 1, 1, 1)).reshape(-1)
        return gain**2 * jnp.square(kernel).sum(1)

    def head(self, h: jax.Array) -> jax.Array:
        """The last layer."""
        out = self.out(h[..., : self.width]).astype(jnp.float32)
        return from_patches(out + h[..., self.width :], SIDE)


def cosine(
    *,
    spec: jax.ShapeDtypeStruct,
    dim: int,
    dtype: Any,
    width: Annotated[int, Bounds(1)] = 96,
    encoder_blocks: Annotated[int, Bounds(0)] = 2,
    decoder_blocks: Annotated[int, Bounds(0)] = 4,
    coarsest: Annotated[float, Bounds(1e-3, 2)] = 1.3,
    finest: Annotated[float, Bounds(1e-3, 2)] = 0.16,
) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder for compression; a latent spans 8x8 pixels.

    Args:
      spec: shape (H, W, C) of a training image.
      dim: size of the latents.
      dtype: of the computation of the blocks; params are float32.
      width: of the blocks.
      encoder_blocks, decoder_blocks: number of residual blocks.
      coarsest, finest: step of latents at quality 0 and 1, in units of images, which are in [-1, 1].

    Raises:
      ValueError: the image is not a number of squares, or the latents are larger than the squares.
    """
    height, width_of_image, channels = spec.shape
    if height % SIDE or width_of_image % SIDE:
        raise ValueError(f"images are {height}x{width_of_image}: use multiples of {SIDE}")
    if dim > channels * SIDE**2:
        raise ValueError(
            f"a latent of {dim} is larger than the {channels * SIDE**2} values of its pixels"
        )
    shared = {"dim": dim, "width": width, "coarsest": coarsest, "finest": finest, "dtype": dtype}
    encoder = Encoder(blocks=encoder_blocks, **shared)
    return encoder, Decoder(channels=channels, blocks=decoder_blocks, **shared)

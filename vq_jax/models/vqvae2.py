"""VQ-VAE-2: latents at several resolutions (Razavi et al. 2019, sec. 3.1), for the quantizer `hierarchy`."""

from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vq_jax.bounds import Bounds
from vq_jax.codes import split_levels
from vq_jax.models.layers import TransposedConv, conv, remat_if
from vq_jax.models.vqvae import ResidualStack, enlarge, halve


class Encoder(nn.Module):
    """Images float [B, H, W, C] to latents float32 [B, L, dim], level by level, coarse to fine.

    The finest level has the stride 2^downsamples; each coarser one halves it.
    """

    dim: int
    hidden: int
    res_hidden: int
    num_res_blocks: int
    downsamples: int
    levels: int
    dtype: Any
    remat: bool = False

    @property
    def strides(self) -> None:
        """Codes of all levels are one sequence, for images of one size."""
        return None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = halve(x, self.hidden, self.downsamples, self.dtype)
        found: list[jax.Array] = []
        for level in range(self.levels):  # fine to coarse
            if level:
                x = conv(self.hidden, 4, stride=2, dtype=self.dtype, name=f"coarser_{level}")(x)
                x = nn.relu(x)
            x = conv(self.hidden, 3, dtype=self.dtype, name=f"conv_{level}")(x)
            x = remat_if(self.remat, ResidualStack)(
                self.hidden, self.res_hidden, self.num_res_blocks, self.dtype,
                name=f"residual_{level}",
            )(x)  # fmt: skip
            z = conv(self.dim, 1, dtype=self.dtype, name=f"to_latent_{level}")(x)
            found.append(z.reshape(z.shape[0], -1, self.dim))
        return jnp.concatenate(found[::-1], axis=1).astype(jnp.float32)


class Decoder(nn.Module):
    """Latents float [B, L, dim] to images float32 [B, H, W, channels].

    From the coarsest level on, features are enlarged and joined with the latents of the next level.
    """

    channels: int
    hidden: int
    res_hidden: int
    num_res_blocks: int
    downsamples: int
    grids: tuple[tuple[int, int], ...]
    dtype: Any
    remat: bool = False

    def setup(self):
        self.conv_out = TransposedConv(self.channels, self.dtype)

    @nn.compact
    def features(self, z: jax.Array) -> jax.Array:
        """Everything before the last transposed convolution, at half of the image's resolution."""
        x: Any = None
        for level, part in enumerate(split_levels(z, self.grids)):  # coarse to fine
            if x is not None:
                enlarged = TransposedConv(self.hidden, self.dtype, name=f"finer_{level}")(x)
                part = jnp.concatenate([nn.relu(enlarged), part.astype(self.dtype)], axis=-1)
            x = conv(self.hidden, 3, dtype=self.dtype, name=f"conv_{level}")(part)
            x = remat_if(self.remat, ResidualStack)(
                self.hidden, self.res_hidden, self.num_res_blocks, self.dtype,
                name=f"residual_{level}",
            )(x)  # fmt: skip
        return enlarge(x, self.hidden, self.downsamples, self.dtype)

    def head(self, h: jax.Array) -> jax.Array:
        """The last transposed convolution."""
        return self.conv_out(h).astype(jnp.float32)


def vqvae2(
    *,
    spec: jax.ShapeDtypeStruct,
    dim: int,
    dtype: Any,
    hidden: Annotated[int, Bounds(2)] = 128,
    res_hidden: Annotated[int, Bounds(1)] = 32,
    num_res_blocks: Annotated[int, Bounds(0)] = 2,
    downsamples: Annotated[int, Bounds(1)] = 2,
    levels: Annotated[int, Bounds(1, 8)] = 2,
    remat_encoder: bool = False,
    remat_decoder: bool = False,
) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder after Razavi et al. 2019, sized by default as rosinality/vq-vae-2-pytorch.

    Args:
      spec: shape (H, W, C) of an image, fixed for this model.
      dim: size of the latents handed to the quantizer.
      dtype: of the computation; params are float32.
      hidden: width of the body; the outermost convolutions have half of it.
      res_hidden: width inside a residual block.
      num_res_blocks: number of residual blocks at each level, in the encoder and in the decoder.
      downsamples: number of convolutions of stride 2 before the finest level.
      levels: number of levels.
      remat_encoder, remat_decoder: recompute activations of residual blocks in the backward pass.

    Raises:
      ValueError: the image is not square, or does not halve often enough.
    """
    height, width, channels = spec.shape
    halvings = downsamples + levels - 1
    if height != width or height % 2**halvings:
        raise ValueError(
            f"data.resolution {height} does not halve {halvings} times, as model.downsamples="
            f"{downsamples} and model.levels={levels} need"
        )
    sides = [height // 2 ** (halvings - level) for level in range(levels)]
    shared = {
        "hidden": hidden,
        "res_hidden": res_hidden,
        "num_res_blocks": num_res_blocks,
        "downsamples": downsamples,
        "dtype": dtype,
    }
    grids = tuple((side, side) for side in sides)
    return (
        Encoder(dim=dim, levels=levels, remat=remat_encoder, **shared),
        Decoder(channels=channels, grids=grids, remat=remat_decoder, **shared),
    )

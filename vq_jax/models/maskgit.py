"""The encoder and decoder of MaskGIT: VQGAN's without attention (Chang et al. 2022, sec. 4.1)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vq_jax.models import tower
from vq_jax.models.layers import GroupNorm, Upsample, check_halves, conv, remat_if


class Block(nn.Module):
    """GroupNorm-swish-conv twice, plus the input, without biases.

    Where the number of channels changes, the released weights apply the 1x1 shortcut to the output of
    the second convolution, not to the input.
    """

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kwargs = {"dtype": self.dtype, "use_bias": False}
        h = nn.swish(GroupNorm(dtype=self.dtype, name="norm1")(x))
        h = conv(self.features, 3, name="conv1", **kwargs)(h)
        h = nn.swish(GroupNorm(dtype=self.dtype, name="norm2")(h))
        h = conv(self.features, 3, name="conv2", **kwargs)(h)
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, name="shortcut", **kwargs)(h)
        return x + h


def _average_pool(features: int, name: str):
    """Halves the size by 2x2 means; it has no params."""
    del features, name
    return lambda h: nn.avg_pool(h, (2, 2), (2, 2))


class Encoder(nn.Module):
    """Images float [B, H, W, C] in [-1, 1] to latents float32 [B, H/f, W/f, dim], f = 2^(levels - 1)."""

    dim: int
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    dtype: Any
    remat: bool = False

    @property
    def strides(self) -> tuple[int, int]:
        return tower.halving_strides(len(self.ch_mult))

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        block = partial(remat_if(self.remat, Block), dtype=self.dtype)
        x = (x + 1) / 2  # MaskGIT's images are in [0, 1]
        h = conv(self.ch, 3, dtype=self.dtype, use_bias=False, name="conv_in")(x)
        widths = [self.ch * mult for mult in self.ch_mult]
        h = tower.down(h, widths, self.num_res_blocks, block=block, downsample=_average_pool)
        h = tower.middle(h, self.num_res_blocks, block)
        h = tower.normalize_output(h, self.dtype)
        return conv(self.dim, 1, dtype=self.dtype, name="conv_out")(h).astype(jnp.float32)


class Decoder(nn.Module):
    """Latents float [B, h, w, dim] to images float32 [B, h f, w f, channels], about in [-1, 1]."""

    channels: int
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    dtype: Any
    remat: bool = False

    def setup(self):
        self.conv_out = conv(self.channels, 3, dtype=self.dtype)

    @nn.compact
    def features(self, z: jax.Array) -> jax.Array:
        """Everything before the last convolution: [B, h f, w f, ch * ch_mult[0]]."""
        block = partial(remat_if(self.remat, Block), dtype=self.dtype)
        upsample = partial(remat_if(self.remat, Upsample), dtype=self.dtype)
        h = conv(self.ch * self.ch_mult[-1], 3, dtype=self.dtype, name="conv_in")(z)
        h = tower.middle(h, self.num_res_blocks, block)
        widths = [self.ch * mult for mult in self.ch_mult]
        h = tower.up(h, widths, self.num_res_blocks, block=block, upsample=upsample)
        return tower.normalize_output(h, self.dtype)

    def head(self, h: jax.Array) -> jax.Array:
        """The last convolution, then from [0, 1] to [-1, 1]."""
        return 2.0 * self.conv_out(h).astype(jnp.float32) - 1.0


def maskgit(
    *,
    spec: jax.ShapeDtypeStruct,
    dim: int,
    dtype: Any,
    ch: int = 128,
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4),
    num_res_blocks: int = 2,
    remat_encoder: bool = False,
    remat_decoder: bool = False,
) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder after Chang et al. 2022 (google-research/maskgit's `vqgan_tokenizer`).

    Args:
      spec: shape (H, W, C) of an image.
      dim: size of the latents handed to the quantizer.
      dtype: of the computation; params are float32.
      ch: base width; level l has ch * ch_mult[l] channels.
      ch_mult: one entry a level, each level at half the resolution of the one before.
      num_res_blocks: number of residual blocks a level, and in the middle.
      remat_encoder, remat_decoder: recompute activations of blocks in the backward pass.

    Raises:
      ValueError: the image does not halve as often as there are levels.
    """
    resolution, _, channels = spec.shape
    check_halves(resolution, len(ch_mult) - 1)
    shared = {
        "ch": ch,
        "ch_mult": tuple(ch_mult),
        "num_res_blocks": num_res_blocks,
        "dtype": dtype,
    }
    return (
        Encoder(dim=dim, remat=remat_encoder, **shared),
        Decoder(channels=channels, remat=remat_decoder, **shared),
    )

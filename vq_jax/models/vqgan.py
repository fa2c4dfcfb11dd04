"""The convolutional encoder and decoder of VQGAN (Esser et al. 2021, taming-transformers)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vq_jax.models import tower
from vq_jax.models.layers import Attention, Downsample, ResidualBlock, Upsample, conv, remat_if


class Middle(nn.Module):
    """A block, optional attention and a block, at the coarsest resolution."""

    features: int
    attention: bool
    dtype: Any
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        block = remat_if(self.remat, ResidualBlock)
        x = block(self.features, self.dtype, name="block_1")(x)
        if self.attention:
            x = remat_if(self.remat, Attention)(self.dtype, name="attn_1")(x)
        return block(self.features, self.dtype, name="block_2")(x)


class Encoder(nn.Module):
    """Images float [B, H, W, C] to latents float32 [B, H/f, W/f, dim], f = 2^(levels - 1)."""

    dim: int
    ch: int
    ch_mult: tuple[float, ...]
    num_res_blocks: int
    attn_levels: tuple[int, ...]
    mid_attention: bool
    z_channels: int
    dtype: Any
    quant_kernel: int = 1
    remat: bool = False

    @property
    def strides(self) -> tuple[int, int]:
        return tower.halving_strides(len(self.ch_mult))

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = conv(self.ch, 3, dtype=self.dtype, name="conv_in")(x)
        h = tower.down(
            h,
            [round(self.ch * mult) for mult in self.ch_mult],
            self.num_res_blocks,
            block=partial(remat_if(self.remat, ResidualBlock), dtype=self.dtype),
            downsample=partial(Downsample, dtype=self.dtype),
            attention=partial(remat_if(self.remat, Attention), dtype=self.dtype),
            attn_levels=self.attn_levels,
        )
        h = Middle(h.shape[-1], self.mid_attention, self.dtype, self.remat, name="mid")(h)
        h = tower.normalize_output(h, self.dtype)
        h = conv(self.z_channels, 3, dtype=self.dtype, name="conv_out")(h)
        h = conv(self.dim, self.quant_kernel, dtype=self.dtype, name="quant_conv")(h)
        return h.astype(jnp.float32)


class Decoder(nn.Module):
    """Latents float [B, h, w, dim] to images float32 [B, h f, w f, channels]."""

    channels: int
    ch: int
    ch_mult: tuple[float, ...]
    num_res_blocks: int
    attn_levels: tuple[int, ...]
    mid_attention: bool
    z_channels: int
    dtype: Any
    quant_kernel: int = 1
    remat: bool = False

    def setup(self):
        self.conv_out = conv(self.channels, 3, dtype=self.dtype)

    @nn.compact
    def features(self, z: jax.Array) -> jax.Array:
        """Everything before the last convolution: [B, h f, w f, ch * ch_mult[0]]."""
        widths = [round(self.ch * mult) for mult in self.ch_mult]
        kernel = self.quant_kernel
        h = conv(self.z_channels, kernel, dtype=self.dtype, name="post_quant_conv")(z)
        h = conv(widths[-1], 3, dtype=self.dtype, name="conv_in")(h)
        h = Middle(widths[-1], self.mid_attention, self.dtype, self.remat, name="mid")(h)
        h = tower.up(
            h,
            widths,
            self.num_res_blocks + 1,
            block=partial(remat_if(self.remat, ResidualBlock), dtype=self.dtype),
            upsample=partial(remat_if(self.remat, Upsample), dtype=self.dtype),
            attention=partial(remat_if(self.remat, Attention), dtype=self.dtype),
            attn_levels=self.attn_levels,
        )
        return tower.normalize_output(h, self.dtype)

    def head(self, h: jax.Array) -> jax.Array:
        """The last convolution."""
        return self.conv_out(h).astype(jnp.float32)


def attention_levels(
    resolution: int, levels: int, attn_resolutions: tuple[int, ...]
) -> tuple[int, ...]:
    """Returns the levels whose blocks are followed by attention, for images of side `resolution`."""
    sides = [resolution // 2**level for level in range(levels)]
    return tuple(i for i, side in enumerate(sides) if side in attn_resolutions)


def vqgan(
    *,
    spec: jax.ShapeDtypeStruct,
    dim: int,
    dtype: Any,
    ch: int = 128,
    ch_mult: tuple[float, ...] = (1, 1, 2, 2, 4),
    num_res_blocks: int = 2,
    attn_resolutions: tuple[int, ...] = (16,),
    mid_attention: bool = True,
    z_channels: int = 256,
    quant_kernel: int = 1,
    remat_encoder: bool = False,
    remat_decoder: bool = False,
) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder after Esser et al. 2021 (appendix B; taming's `Encoder` and `Decoder`).

    Args:
      spec: shape (H, W, C) of a training image; its height decides which levels have attention.
      dim: size of the latents handed to the quantizer.
      dtype: of the computation; params are float32.
      ch: base width; level l has ch * ch_mult[l] channels.
      ch_mult: one entry a level, each level at half the resolution of the one before.
      num_res_blocks: number of residual blocks a level (the decoder has one more).
      attn_resolutions: sides of feature maps at which every block is followed by attention.
      mid_attention: whether the middle has attention.
      z_channels: width of the encoder's last 3x3 convolution.
      quant_kernel: side of the convolutions next to the quantizer; VAR's are 3.
      remat_encoder, remat_decoder: recompute activations of blocks in the backward pass: less memory,
        about a third more time.
    """
    resolution, _, channels = spec.shape
    shared = {
        "ch": ch,
        "ch_mult": tuple(ch_mult),
        "num_res_blocks": num_res_blocks,
        "attn_levels": attention_levels(resolution, len(ch_mult), attn_resolutions),
        "mid_attention": mid_attention,
        "z_channels": z_channels,
        "quant_kernel": quant_kernel,
        "dtype": dtype,
    }
    return (
        Encoder(dim=dim, remat=remat_encoder, **shared),
        Decoder(channels=channels, remat=remat_decoder, **shared),
    )

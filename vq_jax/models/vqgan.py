"""The convolutional encoder and decoder of VQGAN (Esser et al. 2021, taming-transformers)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vq_jax.models.layers import (
    Attention,
    Downsample,
    GroupNorm,
    ResidualBlock,
    Upsample,
    conv,
    remat_if,
)


class Middle(nn.Module):
    """Block, attention (where asked for), block, at the coarsest resolution."""

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
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        block, attention = (remat_if(self.remat, m) for m in (ResidualBlock, Attention))
        h = conv(self.ch, 3, dtype=self.dtype, name="conv_in")(x)
        for level, mult in enumerate(self.ch_mult):
            width = round(self.ch * mult)
            for i in range(self.num_res_blocks):
                h = block(width, self.dtype, name=f"down_{level}_block_{i}")(h)
                if level in self.attn_levels:
                    h = attention(self.dtype, name=f"down_{level}_attn_{i}")(h)
            if level < len(self.ch_mult) - 1:
                h = Downsample(width, self.dtype, name=f"down_{level}_downsample")(h)
        h = Middle(h.shape[-1], self.mid_attention, self.dtype, self.remat, name="mid")(h)
        h = nn.swish(GroupNorm(dtype=self.dtype, name="norm_out")(h))
        h = conv(self.z_channels, 3, dtype=self.dtype, name="conv_out")(h)
        return conv(self.dim, 1, dtype=self.dtype, name="quant_conv")(h).astype(jnp.float32)


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
    remat: bool = False

    def setup(self):
        self.conv_out = conv(self.channels, 3, dtype=self.dtype)

    @nn.compact
    def features(self, z: jax.Array) -> jax.Array:
        """Everything before the last convolution: [B, h f, w f, ch * ch_mult[0]]."""
        block, attention, upsample = (
            remat_if(self.remat, m) for m in (ResidualBlock, Attention, Upsample)
        )
        h = conv(self.z_channels, 1, dtype=self.dtype, name="post_quant_conv")(z)
        width = round(self.ch * self.ch_mult[-1])
        h = conv(width, 3, dtype=self.dtype, name="conv_in")(h)
        h = Middle(width, self.mid_attention, self.dtype, self.remat, name="mid")(h)
        for level in reversed(range(len(self.ch_mult))):
            width = round(self.ch * self.ch_mult[level])
            for i in range(self.num_res_blocks + 1):
                h = block(width, self.dtype, name=f"up_{level}_block_{i}")(h)
                if level in self.attn_levels:
                    h = attention(self.dtype, name=f"up_{level}_attn_{i}")(h)
            if level > 0:
                h = upsample(width, self.dtype, name=f"up_{level}_upsample")(h)
        return nn.swish(GroupNorm(dtype=self.dtype, name="norm_out")(h))

    def to_pixels(self, h: jax.Array) -> jax.Array:
        """The last convolution."""
        return self.conv_out(h).astype(jnp.float32)


def attention_levels(
    resolution: int, levels: int, attn_resolutions: tuple[int, ...]
) -> tuple[int, ...]:
    """The levels whose blocks are followed by attention, where images have a side of `resolution`."""
    sides = [resolution // 2**level for level in range(levels)]
    return tuple(i for i, side in enumerate(sides) if side in attn_resolutions)


def vqgan(
    *,
    resolution: int,
    channels: int,
    dim: int,
    dtype: Any,
    ch: int = 128,
    ch_mult: tuple[float, ...] = (1, 1, 2, 2, 4),
    num_res_blocks: int = 2,
    attn_resolutions: tuple[int, ...] = (16,),
    mid_attention: bool = True,
    z_channels: int = 256,
    remat_encoder: bool = False,
    remat_decoder: bool = False,
) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder after Esser et al. 2021 (appendix B; taming's `Encoder` and `Decoder`).

    Args:
      resolution: side of the training images, which tells at which levels attention sits.
      channels: of the images.
      dim: of the latents handed to the quantizer.
      dtype: of the computation; params are float32.
      ch: base width; level l has ch * ch_mult[l] channels.
      ch_mult: one entry a level, each level at half the resolution of the one before.
      num_res_blocks: residual blocks a level (the decoder has one more).
      attn_resolutions: sides at which every block is followed by attention.
      mid_attention: whether the middle has attention.
      z_channels: width of the encoder's last 3x3 convolution.
      remat_encoder, remat_decoder: compute blocks again for the gradient instead of keeping their
        activations: less memory, about a third more time.
    """
    shared = {
        "ch": ch,
        "ch_mult": tuple(ch_mult),
        "num_res_blocks": num_res_blocks,
        "attn_levels": attention_levels(resolution, len(ch_mult), attn_resolutions),
        "mid_attention": mid_attention,
        "z_channels": z_channels,
        "dtype": dtype,
    }
    return (
        Encoder(dim=dim, remat=remat_encoder, **shared),
        Decoder(channels=channels, remat=remat_decoder, **shared),
    )

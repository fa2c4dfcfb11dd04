"""Open-MAGVIT2's encoder and decoder for images (Luo et al. 2024, after Yu et al. 2023, MAGVIT-v2)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vq_jax.models.layers import GroupNorm, ResidualBlock, check_halves, conv, remat_if


class AdaptiveGroupNorm(nn.Module):
    """GroupNorm whose scale and bias are linear in each latent channel's spread and mean over space."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, z: jax.Array) -> jax.Array:
        z_BPD = z.astype(jnp.float32).reshape(z.shape[0], -1, z.shape[-1])
        spread_BD = jnp.sqrt(jnp.var(z_BPD, axis=1, ddof=1) + 1e-6)
        scale_BC = nn.Dense(x.shape[-1], name="gamma")(spread_BD)
        bias_BC = nn.Dense(x.shape[-1], name="beta")(z_BPD.mean(1))
        normed = GroupNorm(affine=False)(x)
        return (normed * scale_BC[:, None, None] + bias_BC[:, None, None]).astype(self.dtype)


class DepthToSpace(nn.Module):
    """A 3x3 convolution to four times the channels, which become twice the height and width."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, _ = x.shape
        x = conv(4 * self.features, 3, dtype=self.dtype, name="conv")(x)
        x = x.reshape(b, h, w, 2, 2, self.features).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(b, 2 * h, 2 * w, self.features)


class Encoder(nn.Module):
    """Images float [B, H, W, C] to latents float32 [B, H/f, W/f, dim], f = 2^(levels - 1)."""

    dim: int
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    dtype: Any
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        block = remat_if(self.remat, ResidualBlock)
        h = conv(self.ch, 3, dtype=self.dtype, use_bias=False, name="conv_in")(x)
        for level, mult in enumerate(self.ch_mult):
            width = self.ch * mult
            for i in range(self.num_res_blocks):
                h = block(width, self.dtype, False, name=f"down_{level}_block_{i}")(h)
            if level < len(self.ch_mult) - 1:
                name = f"down_{level}_downsample"
                h = conv(width, 3, stride=2, padding=1, dtype=self.dtype, name=name)(h)
        for i in range(self.num_res_blocks):
            h = block(h.shape[-1], self.dtype, False, name=f"mid_block_{i}")(h)
        h = nn.swish(GroupNorm(dtype=self.dtype, name="norm_out")(h))
        return conv(self.dim, 1, dtype=self.dtype, name="conv_out")(h).astype(jnp.float32)


class Decoder(nn.Module):
    """Latents float [B, h, w, dim] to images float32 [B, h f, w f, channels]."""

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
        block, upsample = (remat_if(self.remat, m) for m in (ResidualBlock, DepthToSpace))
        h = conv(self.ch * self.ch_mult[-1], 3, dtype=self.dtype, name="conv_in")(z)
        for i in range(self.num_res_blocks):
            h = block(h.shape[-1], self.dtype, False, name=f"mid_block_{i}")(h)
        for level in reversed(range(len(self.ch_mult))):
            width = self.ch * self.ch_mult[level]
            h = AdaptiveGroupNorm(self.dtype, name=f"adaptive_{level}")(h, z)
            for i in range(self.num_res_blocks):
                h = block(width, self.dtype, False, name=f"up_{level}_block_{i}")(h)
            if level > 0:
                h = upsample(width, self.dtype, name=f"up_{level}_upsample")(h)
        return nn.swish(GroupNorm(dtype=self.dtype, name="norm_out")(h))

    def to_pixels(self, h: jax.Array) -> jax.Array:
        """The last convolution."""
        return self.conv_out(h).astype(jnp.float32)


def magvit2(
    *,
    resolution: int,
    channels: int,
    dim: int,
    dtype: Any,
    ch: int = 128,
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4),
    num_res_blocks: int = 4,
    remat_encoder: bool = False,
    remat_decoder: bool = False,
) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder after Luo et al. 2024 (Open-MAGVIT2's image tokenizer).

    Args:
      resolution: side of the training images; must halve once a level but one.
      channels: of the images.
      dim: of the latents handed to the quantizer; in the paper the bits of an `lfq`.
      dtype: of the computation; params are float32.
      ch: base width; level l has ch * ch_mult[l] channels.
      ch_mult: one entry a level, each level at half the resolution of the one before.
      num_res_blocks: residual blocks a level, and in the middle.
      remat_encoder, remat_decoder: compute blocks again for the gradient instead of keeping their
        activations.
    """
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

"""The image encoder and decoder of Open-MAGVIT2 (Luo et al. 2024, after Yu et al. 2023, MAGVIT-v2)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vq_jax.models import tower
from vq_jax.models.layers import GroupNorm, ResidualBlock, check_halves, conv, remat_if


class AdaptiveGroupNorm(nn.Module):
    """GroupNorm whose scale and bias are linear functions of the latents.

    The scale depends on the standard deviation of each latent channel over space, the bias on its mean.
    """

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
    """A 3x3 convolution to four times the channels, rearranged to twice the height and width."""

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

    @property
    def strides(self) -> tuple[int, int]:
        return tower.halving_strides(len(self.ch_mult))

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        block = partial(remat_if(self.remat, ResidualBlock), dtype=self.dtype, use_bias=False)
        downsample = partial(conv, kernel=3, stride=2, padding=1, dtype=self.dtype)
        h = conv(self.ch, 3, dtype=self.dtype, use_bias=False, name="conv_in")(x)
        widths = [self.ch * mult for mult in self.ch_mult]
        h = tower.down(h, widths, self.num_res_blocks, block=block, downsample=downsample)
        h = tower.middle(h, self.num_res_blocks, block)
        h = tower.normalize_output(h, self.dtype)
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
        block = partial(remat_if(self.remat, ResidualBlock), dtype=self.dtype, use_bias=False)
        upsample = partial(remat_if(self.remat, DepthToSpace), dtype=self.dtype)

        def adapt(h, level):
            return AdaptiveGroupNorm(self.dtype, name=f"adaptive_{level}")(h, z)

        h = conv(self.ch * self.ch_mult[-1], 3, dtype=self.dtype, name="conv_in")(z)
        h = tower.middle(h, self.num_res_blocks, block)
        widths = [self.ch * mult for mult in self.ch_mult]
        h = tower.up(h, widths, self.num_res_blocks, block=block, upsample=upsample, before=adapt)
        return tower.normalize_output(h, self.dtype)

    def head(self, h: jax.Array) -> jax.Array:
        """The last convolution."""
        return self.conv_out(h).astype(jnp.float32)


def magvit2(
    *,
    spec: jax.ShapeDtypeStruct,
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
      spec: shape (H, W, C) of an image.
      dim: size of the latents handed to the quantizer; in the paper the bits of an `lfq`.
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

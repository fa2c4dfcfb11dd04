"""MaskGIT's encoder and decoder: VQGAN's without attention (Chang et al. 2022, sec. 4.1)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vq_jax.models.layers import GroupNorm, Upsample, check_halves, conv, remat_if


class Block(nn.Module):
    """GroupNorm-swish-conv twice, plus the input; where channels change, plus a 1x1 of the result.

    The released weights are of this form: their shortcut looks at what the block has made, not at
    what came in, and nothing here has a bias.
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


class Encoder(nn.Module):
    """Images float [B, H, W, C] in [-1, 1] to latents float32 [B, H/f, W/f, dim], f = 2^(levels - 1)."""

    dim: int
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    dtype: Any
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        block = remat_if(self.remat, Block)
        x = (x + 1) / 2  # its images lie in [0, 1]
        h = conv(self.ch, 3, dtype=self.dtype, use_bias=False, name="conv_in")(x)
        for level, mult in enumerate(self.ch_mult):
            for i in range(self.num_res_blocks):
                h = block(self.ch * mult, self.dtype, name=f"down_{level}_block_{i}")(h)
            if level < len(self.ch_mult) - 1:
                h = nn.avg_pool(h, (2, 2), (2, 2))
        for i in range(self.num_res_blocks):
            h = block(h.shape[-1], self.dtype, name=f"mid_block_{i}")(h)
        h = nn.swish(GroupNorm(dtype=self.dtype, name="norm_out")(h))
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
        block, upsample = (remat_if(self.remat, m) for m in (Block, Upsample))
        h = conv(self.ch * self.ch_mult[-1], 3, dtype=self.dtype, name="conv_in")(z)
        for i in range(self.num_res_blocks):
            h = block(h.shape[-1], self.dtype, name=f"mid_block_{i}")(h)
        for level in reversed(range(len(self.ch_mult))):
            width = self.ch * self.ch_mult[level]
            for i in range(self.num_res_blocks):
                h = block(width, self.dtype, name=f"up_{level}_block_{i}")(h)
            if level > 0:
                h = upsample(width, self.dtype, name=f"up_{level}_upsample")(h)
        return nn.swish(GroupNorm(dtype=self.dtype, name="norm_out")(h))

    def to_pixels(self, h: jax.Array) -> jax.Array:
        """The last convolution, and from [0, 1] to [-1, 1]."""
        return 2.0 * self.conv_out(h).astype(jnp.float32) - 1.0


def maskgit(
    *,
    resolution: int,
    channels: int,
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
      resolution: side of the training images; must halve once a level but one.
      channels: of the images.
      dim: of the latents handed to the quantizer.
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

"""A causal encoder and decoder of video (after Yu et al. 2023, MAGVIT-v2, sec. 3.2), shaped as VQGAN.

The first frame is coded alone, and then groups of frames: a clip has 1 + n s frames, with s the stride in
time, and an image is a clip of one frame. No latent depends on later frames. The params are those of
`vqgan`, with kernels that also span time, so that the weights of an image tokenizer can be the start
(`inflate`).
"""

from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vq_jax.bounds import Bounds
from vq_jax.models.layers import Attention, conv, remat_if
from vq_jax.models.transforms import from_patches, to_patches
from vq_jax.models.video_layers import (
    CausalConv,
    CausalResidualBlock,
    Downsample,
    FrameNorm,
    GroupFrames,
    UngroupFrames,
    Upsample,
    per_frame,
)


class Middle(nn.Module):
    """A block, optional attention over each frame, and a block, at the coarsest resolution."""

    features: int
    attention: bool
    norm: str
    dtype: Any
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        block = remat_if(self.remat, CausalResidualBlock)
        x = block(self.features, self.norm, self.dtype, name="block_1")(x)
        if self.attention:
            x = per_frame(remat_if(self.remat, Attention)(self.dtype, name="attn_1"), x)
        return block(self.features, self.norm, self.dtype, name="block_2")(x)


class _Tower(nn.Module):
    """What encoder and decoder have in common."""

    ch: int
    ch_mult: tuple[float, ...]
    num_res_blocks: int
    halve_time: tuple[int, ...]
    halve_space: tuple[int, ...]
    patch: int
    norm: str
    mid_attention: bool
    z_channels: int
    shortcut: bool
    dtype: Any
    remat: bool

    @property
    def strides(self) -> tuple[int, int, int]:
        side = self.patch * 2 ** len(self.halve_space)
        return 2 ** len(self.halve_time), side, side

    @property
    def widths(self) -> list[int]:
        return [round(self.ch * mult) for mult in self.ch_mult]

    def _block(self, features: int, name: str) -> nn.Module:
        return remat_if(self.remat, CausalResidualBlock)(features, self.norm, self.dtype, name=name)

    def _halves(self, level: int) -> tuple[bool, bool]:
        """Whether time, and height and width, are halved after a level."""
        return level in self.halve_time, level in self.halve_space

    def _middle(self, x: jax.Array) -> jax.Array:
        return Middle(
            x.shape[-1], self.mid_attention, self.norm, self.dtype, self.remat, name="mid"
        )(x)

    def _normed(self, x: jax.Array) -> jax.Array:
        return nn.swish(FrameNorm(self.norm, self.dtype, name="norm_out")(x))

    def _pointwise(self, x: jax.Array, features: int, name: str) -> jax.Array:
        return per_frame(conv(features, 1, dtype=self.dtype, name=name), x)


class Encoder(_Tower):
    """Clips float [B, 1 + n s, H, W, C] to latents float32 [B, 1 + n, H / f, W / f, dim]."""

    dim: int

    # Elements at the start of each axis that are coded alone.
    alone = (1, 0, 0)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = CausalConv(self.ch, dtype=self.dtype, name="conv_in")(to_patches(x, self.patch))
        for level, width in enumerate(self.widths):
            for i in range(self.num_res_blocks):
                h = self._block(width, f"down_{level}_block_{i}")(h)
            if any(halves := self._halves(level)):
                name = f"down_{level}_downsample"
                h = Downsample(width, *halves, dtype=self.dtype, name=name)(h)
        h = self._normed(self._middle(h))
        h = CausalConv(self.z_channels, dtype=self.dtype, name="conv_out")(h)
        z = self._pointwise(h, self.dim, "quant_conv").astype(jnp.float32)
        if self.shortcut:
            step, side, _ = self.strides
            grouped = GroupFrames(step, name="group")(to_patches(x, side))
            z += nn.Dense(self.dim, dtype=self.dtype, name="shortcut")(grouped)
        return z


class Decoder(_Tower):
    """Latents float [B, 1 + n, h, w, dim] to clips float32 [B, 1 + n s, h f, w f, channels]."""

    channels: int

    def setup(self):
        self.conv_out = CausalConv(self.channels * self.patch**2, dtype=self.dtype)

    @nn.compact
    def features(self, z: jax.Array) -> jax.Array:
        """Everything before the last convolution."""
        widths = self.widths
        h = self._pointwise(z, self.z_channels, "post_quant_conv")
        h = CausalConv(widths[-1], dtype=self.dtype, name="conv_in")(h)
        h = self._middle(h)
        for level in reversed(range(len(widths))):
            if any(halves := self._halves(level)):
                up = remat_if(self.remat, Upsample)
                width = widths[min(level + 1, len(widths) - 1)]
                h = up(width, *halves, dtype=self.dtype, name=f"up_{level + 1}_upsample")(h)
            for i in range(self.num_res_blocks + 1):
                h = self._block(widths[level], f"up_{level}_block_{i}")(h)
        h = self._normed(h)
        if self.shortcut:
            step, side, _ = self.strides
            across = side // self.patch
            grouped = nn.Dense(step * across**2 * h.shape[-1], dtype=self.dtype, name="shortcut")(z)
            h += from_patches(UngroupFrames(step, name="ungroup")(grouped), across)
        return h

    def head(self, h: jax.Array) -> jax.Array:
        """The last convolution."""
        return from_patches(self.conv_out(h).astype(jnp.float32), self.patch)


def inflate(tree: Any, wanted: Any) -> Any:
    """Gives the kernels of an image model an axis of time.

    The kernel of the newest frame is that of the image model, and those of the frames before are 0: each
    frame is treated as the image model treats it.

    Args:
      tree: variables of an image model, nested dicts.
      wanted: arrays or shapes of the video model's variables.

    Returns:
      the variables; a leaf that the video model does not have with one more axis stays as it is.
    """
    if isinstance(tree, Mapping):
        if not isinstance(wanted, Mapping):
            return tree
        return {k: inflate(v, wanted[k]) if k in wanted else v for k, v in tree.items()}
    shape = getattr(wanted, "shape", ())
    if len(shape) != np.ndim(tree) + 1 or shape[1:] != np.shape(tree):
        return tree
    kernel = np.zeros(shape, tree.dtype)
    kernel[-1] = tree
    return kernel


def causal3d(
    *,
    spec: jax.ShapeDtypeStruct,
    dim: int,
    dtype: Any,
    ch: int = 128,
    ch_mult: tuple[float, ...] = (1, 2, 2, 4),
    num_res_blocks: int = 2,
    halve_time: tuple[int, ...] = (1, 2),
    halve_space: tuple[int, ...] = (0, 1, 2),
    patch: Annotated[int, Bounds(1)] = 1,
    norm: str = "group",
    mid_attention: bool = False,
    z_channels: int = 256,
    shortcut: bool = False,
    remat_encoder: bool = False,
    remat_decoder: bool = False,
) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder of video; by default a latent spans 4 frames of 8x8 pixels.

    Args:
      spec: shape (T, H, W, C) of a training clip.
      dim: size of the latents handed to the quantizer.
      dtype: of the computation; params are float32.
      ch: base width; level l has ch * ch_mult[l] channels.
      ch_mult: one entry a level.
      num_res_blocks: number of residual blocks a level (the decoder has one more).
      halve_time: levels after which the frames are halved, the first one aside.
      halve_space: levels after which height and width are halved.
      patch: side of the squares of pixels that become channels before the first level.
      norm: "group" (over a frame), "rms" (over the channels of a position) or "none".
      mid_attention: whether the middle has attention, over each frame.
      z_channels: width of the encoder's last convolution in space.
      shortcut: whether a linear map from the pixels of a latent to the latent, and one back to the input of
        the last convolution, are added: the model then starts as a linear transform.
      remat_encoder, remat_decoder: recompute activations of blocks in the backward pass: less memory,
        about a third more time.

    Raises:
      ValueError: a level does not exist, or the clip does not halve as often.
    """
    frames, height, _, channels = spec.shape
    levels = range(len(ch_mult))
    for field, halves in (("halve_time", halve_time), ("halve_space", halve_space)):
        if len(set(halves)) < len(halves) or not set(halves) <= set(levels):
            raise ValueError(
                f"model.{field} is {tuple(halves)}: use levels 0 to {len(ch_mult) - 1}"
            )
    if norm not in ("group", "rms", "none"):
        raise ValueError(f"model.norm is {norm!r}: use 'group', 'rms' or 'none'")
    shared = {
        "ch": ch,
        "ch_mult": tuple(ch_mult),
        "num_res_blocks": num_res_blocks,
        "halve_time": tuple(halve_time),
        "halve_space": tuple(halve_space),
        "patch": patch,
        "norm": norm,
        "mid_attention": mid_attention,
        "z_channels": z_channels,
        "shortcut": shortcut,
        "dtype": dtype,
    }
    encoder = Encoder(dim=dim, remat=remat_encoder, **shared)
    step, side, _ = encoder.strides
    if frames % step != 1 % step:
        raise ValueError(
            f"data.frames is {frames}: the first frame is coded alone, and then groups of {step}; use "
            f"{frames // step * step + 1}"
        )
    if height % side:
        raise ValueError(
            f"data.resolution is {height}: use a multiple of {side}, the pixels of a code"
        )
    return encoder, Decoder(channels=channels, remat=remat_decoder, **shared)

"""The residual tower that VQGAN, MaskGIT and MAGVIT-v2 share: levels of blocks, each at half the size.

Both functions are called inside a module's compact method, so that the layers belong to that module.
Their names decide the names of the params: `down_{level}_block_{i}`, `up_{level}_upsample` and so on.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from vq_jax.models.layers import GroupNorm

# Makes a layer: (features, name=...) -> a function of a feature map.
MakeLayer = Callable[..., Callable[[jax.Array], jax.Array]]


def down(
    h: jax.Array,
    widths: Sequence[int],
    depth: int,
    *,
    block: MakeLayer,
    downsample: MakeLayer,
    attention: Callable[..., Any] | None = None,
    attn_levels: Sequence[int] = (),
) -> jax.Array:
    """Runs the levels of an encoder, from fine to coarse.

    Args:
      h: float [B, H, W, C].
      widths: channels of each level.
      depth: number of blocks a level.
      block: makes a block.
      downsample: makes what halves the size after every level but the last.
      attention: makes an attention layer (name=...).
      attn_levels: levels in which every block is followed by attention.

    Returns:
      float [B, H / f, W / f, widths[-1]] with f = 2^(len(widths) - 1).
    """
    for level, width in enumerate(widths):
        for i in range(depth):
            h = block(width, name=f"down_{level}_block_{i}")(h)
            if attention is not None and level in attn_levels:
                h = attention(name=f"down_{level}_attn_{i}")(h)
        if level < len(widths) - 1:
            h = downsample(width, name=f"down_{level}_downsample")(h)
    return h


def up(
    h: jax.Array,
    widths: Sequence[int],
    depth: int,
    *,
    block: MakeLayer,
    upsample: MakeLayer,
    attention: Callable[..., Any] | None = None,
    attn_levels: Sequence[int] = (),
    before: Callable[[jax.Array, int], jax.Array] = lambda h, level: h,
) -> jax.Array:
    """Runs the levels of a decoder, from coarse to fine.

    Args:
      h: float [B, h, w, C].
      widths: channels of each level, the finest first.
      depth, block, attention, attn_levels: as for `down`.
      upsample: makes what doubles the size after every level but the finest.
      before: (h, level) -> h, applied at the start of each level.

    Returns:
      float [B, h f, w f, widths[0]] with f = 2^(len(widths) - 1).
    """
    for level in reversed(range(len(widths))):
        width = widths[level]
        h = before(h, level)
        for i in range(depth):
            h = block(width, name=f"up_{level}_block_{i}")(h)
            if attention is not None and level in attn_levels:
                h = attention(name=f"up_{level}_attn_{i}")(h)
        if level > 0:
            h = upsample(width, name=f"up_{level}_upsample")(h)
    return h


def middle(h: jax.Array, depth: int, block: MakeLayer) -> jax.Array:
    """Runs `depth` blocks at the coarsest level, named `mid_block_{i}`."""
    for i in range(depth):
        h = block(h.shape[-1], name=f"mid_block_{i}")(h)
    return h


def normalize_output(h: jax.Array, dtype: Any) -> jax.Array:
    """GroupNorm and swish before the last convolution."""
    return nn.swish(GroupNorm(dtype=dtype, name="norm_out")(h))


def halving_strides(levels: int) -> tuple[int, int]:
    """Returns the pixels a latent spans along each axis of a tower of this number of levels."""
    return (2 ** (levels - 1),) * 2

"""Transformers over patches as encoder and decoder: ViT-VQGAN (Yu et al. 2021, sec. 3.1).

Shape suffixes: B examples, h and w patches, S tokens, W width.
"""

import math
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vq_jax.bounds import Bounds
from vq_jax.models.attention import grid_coordinates, rotary_angles
from vq_jax.models.blocks import NORMS, Block, Dtype, normal, swiglu_width
from vq_jax.models.transforms import from_patches, to_patches

POSITIONS = ("rope", "learned")


class Trunk(nn.Module):
    """Blocks of attention over all tokens of a grid, and a last norm.

    Attributes:
      layers, width, heads: of the blocks.
      hidden: width of the feed-forward layers.
      norm, activation: see `blocks`.
      position: "rope", rotary embeddings for a grid of any shape, or "learned", a vector a position, which
        is resampled for other grids than that of training.
      grid: shape of the grid in training.
      dtype: of the computation.
      remat: whether activations are recomputed in the backward pass.
    """

    layers: int
    width: int
    heads: int
    hidden: int
    norm: str
    activation: str
    position: str
    grid: tuple[int, int]
    dtype: Dtype
    remat: bool = False

    @nn.compact
    def __call__(self, x_BhwW: jax.Array) -> jax.Array:
        b, h, w, width = x_BhwW.shape
        angles = None
        if self.position == "rope":
            coordinates = grid_coordinates((h, w), (h, w))
            angles = jnp.asarray(rotary_angles(coordinates, width // self.heads))
        else:
            places = self.param("places", normal, (*self.grid, width))
            if (h, w) != self.grid:
                places = jax.image.resize(places, (h, w, width), "cubic")
            x_BhwW = x_BhwW + places
        x_BSW = x_BhwW.reshape(b, h * w, width).astype(self.dtype)
        x_BSW = run_blocks(self, x_BSW, angles)
        return x_BSW.reshape(b, h, w, width)


def run_blocks(trunk: Any, x_BSW: jax.Array, angles: jax.Array | None) -> jax.Array:
    """Runs the blocks and the last norm of a module with the fields of `Trunk`; inside its compact method."""
    make = nn.remat(Block, static_argnums=(3,)) if trunk.remat else Block
    for i in range(trunk.layers):
        block = make(
            heads=trunk.heads,
            hidden=trunk.hidden,
            norm=trunk.norm,
            activation=trunk.activation,
            dropout=0.0,
            causal=False,
            out_init=nn.initializers.normal(0.02 / math.sqrt(2 * trunk.layers)),
            dtype=trunk.dtype,
            name=f"block_{i}",
        )
        x_BSW, _ = block(x_BSW, angles, False)
    return NORMS[trunk.norm](dtype=trunk.dtype, name="norm_out")(x_BSW)


class Encoder(nn.Module):
    """Images float [B, H, W, C] to latents float32 [B, H/p, W/p, dim]."""

    dim: int
    patch: int
    trunk: Trunk
    dtype: Dtype

    @property
    def strides(self) -> tuple[int, int]:
        return self.patch, self.patch

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        patches = to_patches(x, self.patch)
        h = nn.Dense(self.trunk.width, dtype=self.dtype, name="patches")(patches)
        h = self.trunk(h)
        h = jnp.tanh(nn.Dense(self.trunk.hidden, dtype=self.dtype, name="latent_hidden")(h))
        return nn.Dense(self.dim, dtype=self.dtype, name="to_latent")(h).astype(jnp.float32)


class Decoder(nn.Module):
    """Latents float [B, h, w, dim] to images float32 [B, h p, w p, channels]."""

    channels: int
    patch: int
    trunk: Trunk
    dtype: Dtype

    def setup(self):
        self.pixels = nn.Dense(self.patch**2 * self.channels, dtype=self.dtype)

    @nn.compact
    def features(self, z: jax.Array) -> jax.Array:
        """Everything before the last dense layer: [B, h, w, hidden]."""
        h = nn.Dense(self.trunk.width, dtype=self.dtype, name="from_latent")(z)
        h = self.trunk(h)
        return jnp.tanh(nn.Dense(self.trunk.hidden, dtype=self.dtype, name="pixel_hidden")(h))

    def head(self, h: jax.Array) -> jax.Array:
        """The last dense layer, whose outputs are the pixels of a patch."""
        return from_patches(self.pixels(h).astype(jnp.float32), self.patch)


def patch_grid(spec: jax.ShapeDtypeStruct, patch: int) -> tuple[int, int]:
    """Returns the grid of patches of a training image.

    Raises:
      ValueError: the image does not divide into patches.
    """
    height, wide, _ = spec.shape
    if height % patch or wide % patch:
        raise ValueError(f"data.resolution {height} must be a multiple of model.patch, {patch}")
    return height // patch, wide // patch


def vit(
    *,
    spec: jax.ShapeDtypeStruct,
    dim: int,
    dtype: Any,
    patch: Annotated[int, Bounds(1)] = 8,
    layers: Annotated[int, Bounds(1)] = 12,
    width: Annotated[int, Bounds(4)] = 768,
    heads: Annotated[int, Bounds(1)] = 12,
    hidden: Annotated[int, Bounds(0)] = 0,
    position: str = "rope",
    norm: str = "rms",
    activation: str = "swiglu",
    remat_encoder: bool = False,
    remat_decoder: bool = False,
) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder of transformers over patches, after Yu et al. 2021 (ViT-VQGAN).

    With `position="rope"` images of any size are as those of training; with "learned" the positions are
    resampled, as the paper's are not.

    Args:
      spec: shape (H, W, C) of a training image.
      dim: size of the latents handed to the quantizer.
      dtype: of the computation; params are float32.
      patch: side of a patch in pixels: a code spans one.
      layers, width, heads: of encoder and decoder each.
      hidden: width of the feed-forward layers; 0 is four times the width, or the width that gives "swiglu"
        as many params.
      position: "rope" or "learned"; see `Trunk`.
      norm: "rms" or "layer".
      activation: "swiglu", "gelu" or "gelu_erf".
      remat_encoder, remat_decoder: recompute activations of blocks in the backward pass.

    Raises:
      ValueError: the fields do not fit the image or each other.
    """
    grid = patch_grid(spec, patch)
    if width % heads or width // heads % 4:
        raise ValueError(f"model.width {width} must be a multiple of 4 * model.heads, {4 * heads}")
    for name, value, known in (
        ("position", position, POSITIONS),
        ("norm", norm, ("rms", "layer")),
        ("activation", activation, ("swiglu", "gelu", "gelu_erf")),
    ):
        if value not in known:
            raise ValueError(f"model.{name} is {value!r}: use one of {', '.join(known)}")
    hidden = hidden or (swiglu_width(width) if activation == "swiglu" else 4 * width)

    def trunk(remat: bool) -> Trunk:
        return Trunk(layers, width, heads, hidden, norm, activation, position, grid, dtype, remat)

    return (
        Encoder(dim=dim, patch=patch, trunk=trunk(remat_encoder), dtype=dtype),
        Decoder(channels=spec.shape[-1], patch=patch, trunk=trunk(remat_decoder), dtype=dtype),
    )

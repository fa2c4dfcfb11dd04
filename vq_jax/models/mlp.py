"""A small tokenizer of dense layers, for images of one size."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vq_jax.models.layers import dense_layers


class Encoder(nn.Module):
    """Images float [B, H, W, C] to latents float32 [B, tokens, dim]."""

    dim: int
    hidden: tuple[int, ...]
    tokens: int
    dtype: Any

    @property
    def strides(self) -> None:
        """The model takes images of one size only."""
        return None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = dense_layers(x.reshape(x.shape[0], -1), self.hidden, self.dtype)
        z = nn.Dense(self.tokens * self.dim, dtype=self.dtype, name="to_latent")(h)
        return z.reshape(x.shape[0], self.tokens, self.dim).astype(jnp.float32)


class Decoder(nn.Module):
    """Latents float [B, tokens, dim] to images float32 [B, *shape]."""

    shape: tuple[int, ...]
    hidden: tuple[int, ...]
    dtype: Any

    def setup(self):
        self.dense_out = nn.Dense(math.prod(self.shape), dtype=self.dtype)

    @nn.compact
    def features(self, z: jax.Array) -> jax.Array:
        """Everything before the last dense layer: [B, hidden[0]]."""
        return dense_layers(z.reshape(z.shape[0], -1), self.hidden[::-1], self.dtype)

    def head(self, h: jax.Array) -> jax.Array:
        """The last dense layer, into [-1, 1] by tanh."""
        x = jnp.tanh(self.dense_out(h).astype(jnp.float32))
        return x.reshape(-1, *self.shape)


def mlp(
    *,
    spec: jax.ShapeDtypeStruct,
    dim: int,
    dtype: Any,
    hidden: tuple[int, ...] = (256, 128),
    tokens: int = 1,
) -> tuple[nn.Module, nn.Module]:
    """Dense encoder and decoder: at 28x28x1, dim 64 and one token 784-256-128-64 and back.

    Args:
      spec: shape (H, W, C) of an image, fixed for this model.
      dim: size of one latent.
      dtype: of the computation; params are float32.
      hidden: widths from the image inwards; the decoder mirrors them.
      tokens: number of latents, and so of codes, an image has.
    """
    hidden = tuple(hidden)
    encoder = Encoder(dim=dim, hidden=hidden, tokens=tokens, dtype=dtype)
    decoder = Decoder(shape=tuple(spec.shape), hidden=hidden, dtype=dtype)
    return encoder, decoder

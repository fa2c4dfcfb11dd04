"""The seeds' small tokenizer of dense layers, and its discriminator."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class Encoder(nn.Module):
    """Images float [B, H, W, C] to latents float32 [B, tokens, dim]."""

    dim: int
    hidden: tuple[int, ...]
    tokens: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.hidden):
            h = nn.relu(nn.Dense(width, dtype=self.dtype, name=f"dense_{i}")(h))
        z = nn.Dense(self.tokens * self.dim, dtype=self.dtype, name="to_latent")(h)
        return z.reshape(x.shape[0], self.tokens, self.dim).astype(jnp.float32)


class Decoder(nn.Module):
    """Latents float [B, tokens, dim] to images float32 [B, resolution, resolution, channels]."""

    resolution: int
    channels: int
    hidden: tuple[int, ...]
    dtype: Any

    def setup(self):
        self.dense_out = nn.Dense(self.resolution**2 * self.channels, dtype=self.dtype)

    @nn.compact
    def features(self, z: jax.Array) -> jax.Array:
        """Everything before the last dense layer: [B, hidden[0]]."""
        h = z.reshape(z.shape[0], -1)
        for i, width in enumerate(reversed(self.hidden)):
            h = nn.relu(nn.Dense(width, dtype=self.dtype, name=f"dense_{i}")(h))
        return h

    def to_pixels(self, h: jax.Array) -> jax.Array:
        """The last dense layer, into [-1, 1] by tanh."""
        x = jnp.tanh(self.dense_out(h).astype(jnp.float32))
        return x.reshape(-1, self.resolution, self.resolution, self.channels)


def mlp(
    *,
    resolution: int,
    channels: int,
    dim: int,
    dtype: Any,
    hidden: tuple[int, ...] = (256, 128),
    tokens: int = 1,
) -> tuple[nn.Module, nn.Module]:
    """Dense encoder and decoder: at 28x28x1, dim 64 and one token 784-256-128-64 and back.

    Args:
      resolution: side of the images, fixed for this model.
      channels: of the images.
      dim: of one latent.
      dtype: of the computation; params are float32.
      hidden: widths from the image inwards; the decoder mirrors them.
      tokens: how many latents, and so codes, an image has.
    """
    hidden = tuple(hidden)
    encoder = Encoder(dim=dim, hidden=hidden, tokens=tokens, dtype=dtype)
    decoder = Decoder(resolution=resolution, channels=channels, hidden=hidden, dtype=dtype)
    return encoder, decoder

"""Dense encoder and decoder for feature vectors, as RQ-VAE for semantic IDs has them."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vq_jax.models.layers import dense_layers


class Encoder(nn.Module):
    """Vectors float [B, D] to latents float32 [B, dim]: one position without a grid."""

    dim: int
    hidden: tuple[int, ...]
    dtype: Any

    @property
    def strides(self) -> None:
        """The model takes vectors of one size only."""
        return None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = dense_layers(x, self.hidden, self.dtype)
        return nn.Dense(self.dim, dtype=self.dtype, name="to_latent")(h).astype(jnp.float32)


class Decoder(nn.Module):
    """Latents float [B, dim] to vectors float32 [B, size]."""

    size: int
    hidden: tuple[int, ...]
    dtype: Any

    def setup(self):
        self.dense_out = nn.Dense(self.size, dtype=self.dtype)

    @nn.compact
    def features(self, z: jax.Array) -> jax.Array:
        """Everything before the last dense layer: [B, hidden[0]]."""
        return dense_layers(z, self.hidden[::-1], self.dtype)

    def head(self, h: jax.Array) -> jax.Array:
        """The last dense layer."""
        return self.dense_out(h).astype(jnp.float32)


def vector_mlp(
    *,
    spec: jax.ShapeDtypeStruct,
    dim: int,
    dtype: Any,
    hidden: tuple[int, ...] = (512, 256, 128),
) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder of TIGER's RQ-VAE (Rajput et al. 2023, sec. 3.1).

    Args:
      spec: shape (D,) of a vector.
      dim: size of the latents handed to the quantizer.
      dtype: of the computation; params are float32.
      hidden: widths of the hidden layers, from the input inwards; the decoder mirrors them.
    """
    (size,) = spec.shape
    hidden = tuple(hidden)
    return (
        Encoder(dim=dim, hidden=hidden, dtype=dtype),
        Decoder(size=size, hidden=hidden, dtype=dtype),
    )

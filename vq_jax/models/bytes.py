"""The identity tokenizer of bytes: a code is a byte. It has no params."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

# The signs of the eight bits of each byte, float32 [256, 8], the lowest bit first, as LFQ has them.
_SIGNS = np.where(np.arange(256)[:, None] >> np.arange(8) & 1, 1.0, -1.0).astype(np.float32)
# Logits differ by at least twice as much, so that the right byte has probability 1 in float32.
_SCALE = 16.0


class Encoder(nn.Module):
    """Bytes int [B, L] to the signs of their bits, float32 [B, L, 8]."""

    @property
    def strides(self) -> tuple[int]:
        """A latent is a byte."""
        return (1,)

    def __call__(self, x_BL: jax.Array) -> jax.Array:
        return jnp.asarray(_SIGNS)[x_BL]


class Decoder(nn.Module):
    """Signs float [B, L, 8] to logits float32 [B, L, 256]."""

    def features(self, z: jax.Array) -> jax.Array:
        """The signs."""
        return z

    def head(self, h: jax.Array) -> jax.Array:
        """Scaled agreement with the signs of each byte."""
        return _SCALE * jnp.einsum("bld,kd->blk", h, jnp.asarray(_SIGNS))


def bytes_identity(
    *, spec: jax.ShapeDtypeStruct, dim: int, dtype: Any
) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder for quantizer `lfq` of 8 bits, which makes code n of byte n.

    Raises:
      ValueError: the quantizer takes latents of another size.
    """
    del spec, dtype
    if dim != 8:
        raise ValueError("model 'bytes' needs quantizer 'lfq' with quantizer.bits=8")
    return Encoder(), Decoder()

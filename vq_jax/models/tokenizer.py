"""The tokenizer: encoder, quantizer and decoder behind one Flax module."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax


class Tokenizer(nn.Module):
    """Images to codes and back; its params fall in groups `encoder`, `quantizer` and `decoder`.

    The quantizer works on the last axis of the latents and knows nothing of images. The decoder is
    cut before its last layer (`features`, `to_pixels`) so that the adversarial weight can take that
    layer's gradients without a second pass.
    """

    encoder: nn.Module
    quantizer: nn.Module
    decoder: nn.Module

    def __call__(self, x: jax.Array) -> jax.Array:
        """Reconstructs: float [B, H, W, C] to float32 of the same shape."""
        return self.decode_latents(self.quantizer(self.encoder(x))[0])

    def encode(self, x: jax.Array) -> jax.Array:
        """Latents, float32 [B, *grid, D]."""
        return self.encoder(x)

    def quantize(
        self,
        z: jax.Array,
        axis_name: str | None = None,
        key: jax.Array | None = None,
        now: Mapping[str, Any] | None = None,
    ):
        """Quantized latents, codes and the quantizer's losses: see the quantizer's `__call__`."""
        return self.quantizer(z, key=key, now=now, axis_name=axis_name)

    def pass_through(self, z: jax.Array) -> jax.Array:
        """What the decoder gets of the latents while nothing is quantized: the quantizer's range."""
        return self.quantizer.pass_through(z)

    def lookup(self, codes: jax.Array) -> jax.Array:
        """Quantized latents float32 [B, *grid, D] of codes int32 [B, *grid, *code_shape]."""
        return self.quantizer.lookup(codes)

    def features(self, z_q: jax.Array) -> jax.Array:
        """The decoder's activations before its last layer."""
        return self.decoder.features(z_q)

    def to_pixels(self, h: jax.Array) -> jax.Array:
        """The decoder's last layer: float32 [B, H, W, C]."""
        return self.decoder.to_pixels(h)

    def decode_latents(self, z_q: jax.Array) -> jax.Array:
        """Images float32 [B, H, W, C], about in [-1, 1], of latents float32 [B, *grid, D]."""
        return self.decoder.to_pixels(self.decoder.features(z_q))

    def initialise_codebook(
        self, z: jax.Array, key: jax.Array, batches: int, axis_name: str | None = None
    ):
        """Sets the codebook from latents (apply with mutable params and statistics)."""
        return self.quantizer.initialise(z, key, batches, axis_name=axis_name)

    def update_codebook(
        self, z: jax.Array, codes: jax.Array, key: jax.Array, axis_name: str | None = None
    ):
        """Lets the codebook follow a batch (apply with mutable params and statistics)."""
        return self.quantizer.update(z, codes, key, axis_name=axis_name)

"""The tokenizer: encoder, quantizer and decoder behind one Flax module."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax


class Tokenizer(nn.Module):
    """Turns examples into codes and back; its param groups are `encoder`, `quantizer` and `decoder`.

    The quantizer works on the last axis of the latents, whatever the example is. The decoder is split
    before its last layer (`features`, `head`), so that the adaptive adversarial weight can take the
    gradients of that layer without a second pass.
    """

    encoder: nn.Module
    quantizer: nn.Module
    decoder: nn.Module

    def __call__(self, x: jax.Array) -> jax.Array:
        """Reconstructs examples: [B, ...] to float32 [B, ...]."""
        return self.reconstruct(x)[0]

    def reconstruct(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Reconstructs examples, and returns them with the codes they were decoded from."""
        z_q, codes, _ = self.quantizer(self.encoder(x))
        return self.decode_latents(z_q), codes

    def encode_to_codes(self, x: jax.Array) -> jax.Array:
        """Encodes examples [B, ...] to codes int32 [B, *grid, *code_shape]."""
        return self.quantizer(self.encoder(x))[1]

    def decode_codes(self, codes: jax.Array) -> jax.Array:
        """Decodes codes int32 [B, *grid, *code_shape] to float32 [B, ...]."""
        return self.decode_latents(self.lookup(codes))

    def encode(self, x: jax.Array) -> jax.Array:
        """Encodes examples [B, ...] to latents, float32 [B, *grid, D]."""
        return self.encoder(x)

    def quantize(
        self,
        z: jax.Array,
        axis_name: str | None = None,
        key: jax.Array | None = None,
        scheduled: Mapping[str, Any] | None = None,
    ):
        """Quantizes latents; see `Quantizer.__call__`."""
        return self.quantizer(z, key=key, scheduled=scheduled, axis_name=axis_name)

    def pass_through(self, z: jax.Array) -> jax.Array:
        """The decoder's input while nothing is quantized: latents in the quantizer's range."""
        return self.quantizer.pass_through(z)

    def lookup(self, codes: jax.Array) -> jax.Array:
        """Looks up codes int32 [B, *grid, *code_shape]: quantized latents float32 [B, *grid, D]."""
        return self.quantizer.lookup(codes)

    def features(self, z_q: jax.Array) -> jax.Array:
        """The decoder's activations before its last layer."""
        return self.decoder.features(z_q)

    def head(self, h: jax.Array) -> jax.Array:
        """The decoder's last layer: float32 [B, ...]."""
        return self.decoder.head(h)

    def decode_latents(self, z_q: jax.Array) -> jax.Array:
        """Decodes latents float32 [B, *grid, D] to examples float32 [B, ...]."""
        return self.decoder.head(self.decoder.features(z_q))

    def initialise_codebook(
        self, z: jax.Array, key: jax.Array, batches: int, axis_name: str | None = None
    ):
        """Sets the codebook from latents (apply with mutable params and statistics)."""
        return self.quantizer.initialise(z, key, batches, axis_name=axis_name)

    def update_codebook(
        self, z: jax.Array, codes: jax.Array, key: jax.Array, axis_name: str | None = None
    ):
        """Updates the codebook with a batch (apply with mutable params and statistics)."""
        return self.quantizer.update(z, codes, key, axis_name=axis_name)

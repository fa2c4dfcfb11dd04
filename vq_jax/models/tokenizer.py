"""The tokenizer: encoder, quantizer and decoder behind one Flax module."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vq_jax.quantizers.functions import draw_kept


class Tokenizer(nn.Module):
    """Turns examples into codes and back; its param groups are `encoder`, `quantizer` and `decoder`.

    The quantizer works on the last axis of the latents, whatever the example is. The decoder is split
    before its last layer (`features`, `head`), so that the adaptive adversarial weight can take the
    gradients of that layer without a second pass.

    A decoder with `sequential = True` predicts an example element by element, each given those before.
    Its `features` take the example, too, and it has `begin` and `step`; see
    `text_conv.SequentialDecoder`.
    """

    encoder: nn.Module
    quantizer: nn.Module
    decoder: nn.Module

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the decoder's output for the codes of examples, float32 [B, ...]; see `predict`."""
        z_q, _, _ = self.quantizer(self.encoder(x))
        return self.decoder.head(self.features(z_q, x))

    @property
    def takes_quality(self) -> bool:
        """Whether methods use their argument `quality`, float32 [B] in [0, 1]; None is 1/2."""
        return getattr(self.encoder, "takes_quality", False)

    def _for(self, quality: jax.Array | None) -> dict[str, Any]:
        return {"quality": quality} if self.takes_quality else {}

    def reconstruct(
        self, x: jax.Array, quality: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Reconstructs examples, and returns them with the codes they were decoded from."""
        z_q, codes, _ = self.quantize(self.encode(x, quality), quality=quality)
        return self.decode_latents(z_q, quality), codes

    def encode_to_codes(self, x: jax.Array, quality: jax.Array | None = None) -> jax.Array:
        """Encodes examples [B, ...] to codes int32 [B, *grid, *code_shape]."""
        return self.quantize(self.encode(x, quality), quality=quality)[1]

    def decode_codes(self, codes: jax.Array, quality: jax.Array | None = None) -> jax.Array:
        """Decodes codes int32 [B, *grid, *code_shape] to float32 [B, ...]."""
        return self.decode_latents(self.lookup(codes), quality)

    def encode(self, x: jax.Array, quality: jax.Array | None = None) -> jax.Array:
        """Encodes examples [B, ...] to latents, float32 [B, *grid, D]."""
        return self.encoder(x, **self._for(quality))

    def quantize(
        self,
        z: jax.Array,
        axis_name: str | None = None,
        key: jax.Array | None = None,
        scheduled: Mapping[str, Any] | None = None,
        quality: jax.Array | None = None,
    ):
        """Quantizes latents; see `Quantizer.__call__`."""
        given = {"quality": quality} if self.quantizer.takes_quality else {}
        return self.quantizer(z, key=key, scheduled=scheduled, axis_name=axis_name, **given)

    def distortion_weight(self, quality: jax.Array) -> jax.Array:
        """Weights of the reconstruction losses of examples [B], of a model that takes a quality."""
        return self.encoder.distortion_weight(quality)

    def pass_through(self, z: jax.Array) -> jax.Array:
        """The decoder's input while nothing is quantized: latents in the quantizer's range."""
        return self.quantizer.pass_through(z)

    def lookup(self, codes: jax.Array) -> jax.Array:
        """Looks up codes int32 [B, *grid, *code_shape]: quantized latents float32 [B, *grid, D]."""
        return self.quantizer.lookup(codes)

    @property
    def sequential(self) -> bool:
        """Whether the decoder predicts an example element by element."""
        return getattr(self.decoder, "sequential", False)

    def features(self, z_q: jax.Array, x: jax.Array, quality: jax.Array | None = None) -> jax.Array:
        """The decoder's activations before its last layer; x are the examples, for a sequential one."""
        if self.sequential:
            return self.decoder.features(z_q, x)
        return self.decoder.features(z_q, **self._for(quality))

    def predict(self, codes: jax.Array, x: jax.Array) -> jax.Array:
        """The decoder's output for codes; a sequential one predicts each element of x from those before."""
        return self.decoder.head(self.features(self.lookup(codes), x))

    def begin(self, codes: jax.Array) -> Any:
        """Begins to predict examples from codes: what `step` of a sequential decoder needs."""
        return self.decoder.begin(self.lookup(codes))

    def step(self, context: jax.Array, before_B: jax.Array, n: jax.Array, cache: Any) -> Any:
        """Predicts the n-th element of examples; see `text_conv.SequentialDecoder.step`."""
        return self.decoder.step(context, before_B, n, cache)

    def head(self, h: jax.Array) -> jax.Array:
        """The decoder's last layer: float32 [B, ...]."""
        return self.decoder.head(h)

    def decode_latents(self, z_q: jax.Array, quality: jax.Array | None = None) -> jax.Array:
        """Decodes latents float32 [B, *grid, D] to the decoder's output, float32 [B, ...].

        A sequential decoder takes the likeliest element each time.
        """
        if self.sequential:
            return self.draw_elements(z_q, None)[1]
        return self.decoder.head(self.decoder.features(z_q, **self._for(quality)))

    def draw_elements(
        self,
        z_q: jax.Array,
        choose: Callable[[jax.Array, jax.Array], jax.Array] | None,
    ) -> tuple[jax.Array, jax.Array]:
        """Decodes latents with a sequential decoder, element by element.

        Args:
          z_q: float32 [B, *grid, D].
          choose: (n, logits float32 [B, K]) -> the n-th elements int32 [B]; None takes the likeliest.

        Returns:
          the elements int32 [B, L] and their logits float32 [B, L, K].
        """

        def likeliest(n, logits_BK):
            return jnp.argmax(logits_BK, axis=-1).astype(jnp.int32)

        context, cache = self.decoder.begin(z_q)
        choose = choose or likeliest

        def body(module, carry, n):
            before_B, cache = carry
            logits_BK, cache = module.decoder.step(context, before_B, n, cache)
            x_B = choose(n, logits_BK)
            return (x_B, cache), (x_B, logits_BK)

        start = jnp.zeros(z_q.shape[:1], jnp.int32)
        loop = nn.scan(body, variable_broadcast=True, split_rngs={"params": False}, out_axes=1)
        _, found = loop(self, (start, cache), jnp.arange(context.shape[1]))
        return found

    def drop_last(self, z_q: jax.Array, key: jax.Array, axis_name: str | None = None) -> jax.Array:
        """Sets the last latents of some examples to 0, for a decoder with `nested_dropout`.

        Args:
          z_q: float32 [B, N, D].
          key: PRNG key of the training step, the same on every device.
          axis_name: mapped axis, or None.
        """
        share = getattr(self.decoder, "nested_dropout", 0.0)
        if not share:
            return z_q
        rows, count = z_q.shape[:2]
        kept_B = draw_kept(key, rows, count, share, axis_name)
        return jnp.where(jnp.arange(count)[None, :, None] < kept_B[:, None, None], z_q, 0.0)

    @property
    def takes_first_codes(self) -> bool:
        """Whether `decode_codes` also takes the first codes of an example alone."""
        return getattr(self.decoder, "takes_first_codes", False)

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

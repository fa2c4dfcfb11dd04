"""Strided 1-D convolutions over bytes; the decoder predicts all bytes at once, or one after another.

Convolutions are dense layers over shifted or joined positions, which XLA runs much faster than
one-dimensional convolutions on the CPU.

Shape suffixes: B examples, L bytes, W width, D size of a latent, K the 256 bytes.
"""

import math
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vq_jax.bounds import Bounds
from vq_jax.models.attention import grid_coordinates, rotary_angles
from vq_jax.models.blocks import Block, RMSNorm, normal, swiglu_width
from vq_jax.models.ngrams import NgramEmbedding, codes_before

BYTES = 256
_START = BYTES  # stands for the byte before the first one

# Keys and values of the bytes so far, for each causal layer: [B, heads, L, W / heads] each. With n-grams,
# the last element has the bytes before, int32 [B, n - 1], the newest first.
Cache = tuple[Any, ...]


class Residual(nn.Module):
    """RMSNorm, a convolution of three positions, SiLU and a dense layer, with a residual connection."""

    dtype: Any

    @nn.compact
    def __call__(self, x_BLW: jax.Array) -> jax.Array:
        width = x_BLW.shape[-1]
        h = RMSNorm(dtype=self.dtype, name="norm")(x_BLW)
        padded = jnp.pad(h, ((0, 0), (1, 1), (0, 0)))
        h = jnp.concatenate([padded[:, :-2], h, padded[:, 2:]], axis=-1)
        h = nn.silu(nn.Dense(2 * width, dtype=self.dtype, name="conv")(h))
        return x_BLW + nn.Dense(width, kernel_init=normal, dtype=self.dtype, name="out")(h)


def _blocks(x_BLW: jax.Array, layers: int, heads: int, dtype: Any) -> jax.Array:
    """Runs `layers` transformer blocks in which every position sees all others."""
    angles = jnp.asarray(_angles(x_BLW.shape[1], x_BLW.shape[2] // heads))
    for i in range(layers):
        x_BLW, _ = _make_block(layers, heads, x_BLW.shape[2], False, dtype, f"block_{i}")(
            x_BLW, angles, False
        )
    return x_BLW


def _make_block(layers: int, heads: int, width: int, causal: bool, dtype: Any, name: str) -> Block:
    return Block(
        heads=heads,
        hidden=swiglu_width(width),
        norm="rms",
        activation="swiglu",
        dropout=0.0,
        causal=causal,
        out_init=nn.initializers.normal(0.02 / math.sqrt(2 * max(1, layers))),
        dtype=dtype,
        name=name,
    )


def _angles(length: int, head_dim: int) -> Any:
    return rotary_angles(grid_coordinates((length,), (length,)), head_dim)


class Encoder(nn.Module):
    """Bytes int [B, L] to latents float32 [B, L / factor, dim]."""

    dim: int
    factor: int
    width: int
    depth: int
    layers: int
    heads: int
    dtype: Any

    @property
    def strides(self) -> tuple[int]:
        """The bytes that a latent spans."""
        return (self.factor,)

    @nn.compact
    def __call__(self, x_BL: jax.Array) -> jax.Array:
        h = nn.Embed(BYTES, self.width, dtype=self.dtype, name="bytes")(x_BL)
        for level in range(self.factor.bit_length() - 1):
            for i in range(self.depth):
                h = Residual(dtype=self.dtype, name=f"down_{level}_{i}")(h)
            b, n, w = h.shape
            merge = nn.Dense(w, dtype=self.dtype, name=f"down_{level}_merge")
            h = merge(h.reshape(b, n // 2, 2 * w))
        for i in range(self.depth):
            h = Residual(dtype=self.dtype, name=f"mid_{i}")(h)
        h = _blocks(h, self.layers, self.heads, self.dtype)
        h = RMSNorm(dtype=self.dtype, name="norm_out")(h)
        return nn.Dense(self.dim, dtype=self.dtype, name="to_latent")(h).astype(jnp.float32)


class Context(nn.Module):
    """Latents float [B, L / factor, dim] to what the decoder knows of each byte, [B, L, width]."""

    factor: int
    width: int
    depth: int
    layers: int
    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        h = nn.Dense(self.width, dtype=self.dtype, name="from_latent")(z)
        h = _blocks(h, self.layers, self.heads, self.dtype)
        for i in range(self.depth):
            h = Residual(dtype=self.dtype, name=f"mid_{i}")(h)
        for level in range(self.factor.bit_length() - 1):
            b, n, w = h.shape
            split = nn.Dense(2 * w, dtype=self.dtype, name=f"up_{level}_split")
            h = split(h).reshape(b, 2 * n, w)
            for i in range(self.depth):
                h = Residual(dtype=self.dtype, name=f"up_{level}_{i}")(h)
        return h


class Decoder(nn.Module):
    """Latents float [B, L / factor, dim] to logits float32 [B, L, 256] of all bytes at once."""

    context: Context
    dtype: Any

    def setup(self):
        self.norm = RMSNorm(dtype=self.dtype)
        self.dense_out = nn.Dense(BYTES, dtype=self.dtype)

    def features(self, z: jax.Array) -> jax.Array:
        """Everything before the last dense layer."""
        return self.norm(self.context(z))

    def head(self, h: jax.Array) -> jax.Array:
        """The last dense layer."""
        return self.dense_out(h).astype(jnp.float32)


class SequentialDecoder(nn.Module):
    """As `Decoder`, but each byte also depends on the bytes before: p(x_n | codes, x_1 ... x_n-1).

    The codes then need not repeat what the bytes before tell (Chen et al. 2017, "Variational lossy
    autoencoder", sec. 2.2).
    """

    context: Context
    causal_layers: int
    heads: int
    ngrams: tuple[int, ...]
    ngram_bits: int
    ngram_dim: int
    dtype: Any
    sequential = True

    def setup(self):
        width = self.context.width
        self.embedding = nn.Embed(BYTES + 1, width, embedding_init=normal, dtype=self.dtype)
        self.blocks = [
            _make_block(self.causal_layers, self.heads, width, True, self.dtype, f"causal_{i}")
            for i in range(self.causal_layers)
        ]
        if self.ngrams:
            self.ngram_embedding = NgramEmbedding(
                self.ngrams, self.ngram_bits, self.ngram_dim, width, dtype=self.dtype
            )
        self.norm = RMSNorm(dtype=self.dtype)
        self.dense_out = nn.Dense(BYTES, dtype=self.dtype)

    def features(self, z: jax.Array, x_BL: jax.Array) -> jax.Array:
        """Everything before the last dense layer, for known bytes int [B, L]: [B, L, W]."""
        before = jnp.pad(x_BL[:, :-1], ((0, 0), (1, 0)), constant_values=_START)
        h = self.context(z) + self.embedding(before)
        if self.ngrams:
            h = h + self.ngram_embedding(before, codes_before(before, self.ngram_embedding.context))
        angles = jnp.asarray(_angles(x_BL.shape[1], h.shape[2] // self.heads))
        for block in self.blocks:
            h, _ = block(h, angles, False)
        return self.norm(h)

    def head(self, h: jax.Array) -> jax.Array:
        """The last dense layer."""
        return self.dense_out(h).astype(jnp.float32)

    def begin(self, z: jax.Array) -> tuple[jax.Array, Cache]:
        """Returns what the latents tell of each byte, [B, L, W], and the cache before the first byte."""
        context_BLW = self.context(z)
        b, n, w = context_BLW.shape
        zeros = jnp.zeros((b, self.heads, n, w // self.heads), self.dtype)
        cache: Cache = tuple((zeros, zeros) for _ in range(self.causal_layers))
        if not self.ngrams:
            return context_BLW, cache
        return context_BLW, (*cache, jnp.full((b, self.ngram_embedding.context), -1, jnp.int32))

    def step(
        self, context_BLW: jax.Array, before_B: jax.Array, n: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """Predicts one byte.

        Args:
          context_BLW: from `begin`.
          before_B: int32, the byte before; any for the first byte.
          n: int32 [], index of the byte.
          cache: of the bytes before.

        Returns:
          float32 [B, 256], the logits of the byte, and the updated cache.
        """
        before_B = jnp.where(n == 0, _START, before_B)
        x = jax.lax.dynamic_slice_in_dim(context_BLW, n, 1, axis=1)
        x = x + self.embedding(before_B)[:, None]
        if self.ngrams:
            *layers, earlier_BC = cache
            x = x + self.ngram_embedding(before_B, list(earlier_BC.T))[:, None]
            earlier_BC = jnp.concatenate([before_B[:, None], earlier_BC[:, :-1]], axis=1)
            cache = (*layers, earlier_BC)
        table = jnp.asarray(_angles(context_BLW.shape[1], x.shape[2] // self.heads))
        angles = jax.lax.dynamic_slice_in_dim(table, n, 1)
        kept = []
        for block, of_layer in zip(self.blocks, cache, strict=False):
            x, of_layer = block(x, angles, False, of_layer, n)
            kept.append(of_layer)
        return self.head(self.norm(x[:, 0])), (*kept, *cache[self.causal_layers :])


def text_conv(
    *,
    spec: jax.ShapeDtypeStruct,
    dim: int,
    dtype: Any,
    factor: Annotated[int, Bounds(1)] = 8,
    width: Annotated[int, Bounds(4)] = 192,
    depth: Annotated[int, Bounds(0)] = 1,
    layers: Annotated[int, Bounds(0)] = 2,
    heads: Annotated[int, Bounds(1)] = 6,
    causal_layers: Annotated[int, Bounds(0)] = 0,
    ngrams: tuple[int, ...] = (),
    ngram_bits: Annotated[int, Bounds(1, 24)] = 16,
    ngram_dim: Annotated[int, Bounds(1)] = 32,
) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder of bytes: strided convolutions, and transformer blocks over the latents.

    Args:
      spec: shape (L,) of an example.
      dim: size of the latents handed to the quantizer.
      dtype: of the computation; params are float32.
      factor: bytes a code spans, a power of 2.
      width: channels of all layers.
      depth: number of residual blocks at each size.
      layers: number of transformer blocks over the latents, in the encoder and in the decoder.
      heads: of the attention.
      causal_layers: number of blocks of a decoder that also reads the bytes before; 0 predicts all
        bytes at once, from the codes alone.
      ngrams: orders of the n-grams of the bytes before that such a decoder embeds; see `ngrams`.
      ngram_bits, ngram_dim: their tables have 2^ngram_bits rows of this size.

    Raises:
      ValueError: fields do not fit together.
    """
    (length,) = spec.shape
    if factor & (factor - 1):
        raise ValueError(f"model.factor is {factor}: use a power of 2")
    if length % factor:
        raise ValueError(f"data.length {length} must be a multiple of model.factor, {factor}")
    if width % heads or width // heads % 4:
        raise ValueError(f"model.width {width} must be a multiple of 4 * model.heads, {4 * heads}")
    if any(n < 2 for n in ngrams):
        raise ValueError(f"model.ngrams is {tuple(ngrams)}: use orders of 2 or more")
    common: dict[str, Any] = {
        "factor": factor,
        "width": width,
        "depth": depth,
        "layers": layers,
        "heads": heads,
        "dtype": dtype,
    }
    encoder, context = Encoder(dim=dim, **common), Context(**common)
    if not causal_layers:
        return encoder, Decoder(context=context, dtype=dtype)
    return encoder, SequentialDecoder(
        context=context,
        causal_layers=causal_layers,
        heads=heads,
        ngrams=tuple(ngrams),
        ngram_bits=ngram_bits,
        ngram_dim=ngram_dim,
        dtype=dtype,
    )

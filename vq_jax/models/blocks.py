"""Transformer layers: norms, activations and the block of attention and feed-forward layers.

Shape suffixes: B examples, S tokens of a sequence, D width.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vq_jax.models.attention import attend, rotate

Dtype = Any

normal = nn.initializers.normal(0.02)


# Flax's own norms multiply in another order. Their results differ in the last bit, and files coded by
# a prior before would not decode.
class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, in float32 (Zhang & Sennrich 2019, eq. 4)."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
        return (x32 * jax.lax.rsqrt(mean_square + 1e-6) * scale).astype(self.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / std * scale + bias over the last axis, in float32 (Ba et al. 2016)."""

    dtype: Dtype = jnp.float32
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return (standardise(x, self.epsilon) * scale + bias).astype(self.dtype)


def standardise(x: jax.Array, epsilon: float) -> jax.Array:
    """(x - mean) / std over the last axis, float32; `epsilon` is added to the variance."""
    x32 = x.astype(jnp.float32)
    x32 -= jnp.mean(x32, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
    return x32 * jax.lax.rsqrt(variance + epsilon)


# "bert" applies LayerNorm after each residual addition and to the embeddings. Its logits come from one
# more dense layer and share the weights of the embeddings (Devlin et al. 2018; MaskGIT).
NORMS: dict[str, Callable[..., nn.Module]] = {
    "rms": RMSNorm,
    "layer": LayerNorm,
    "bert": partial(LayerNorm, epsilon=1e-12),
}
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": nn.gelu,  # by tanh
    "gelu_erf": partial(nn.gelu, approximate=False),
}


def swiglu_width(width: int) -> int:
    """Returns the hidden width that gives "swiglu" as many params as 4 * width gives the others."""
    return -(-8 * width // 3 // 32) * 32


class Block(nn.Module):
    """Attention and a feed-forward layer with residual connections and pre-norm (Radford et al. 2019).

    With the norm "bert" it is post-norm: each sum is normalised instead (Vaswani et al. 2017).
    """

    heads: int
    hidden: int
    norm: str
    activation: str
    dropout: float
    causal: bool
    out_init: Callable
    dtype: Dtype

    def _dense(self, x_BSD: jax.Array, features: int, name: str, init: Callable = normal):
        """Applies a dense layer to a matrix of tokens.

        On three axes, XLA's CPU compiler adds a slow transpose to the kernel's gradient.
        """
        layer = nn.Dense(
            features, use_bias=self.norm != "rms", kernel_init=init, dtype=self.dtype, name=name
        )
        return layer(x_BSD.reshape(-1, x_BSD.shape[-1])).reshape(*x_BSD.shape[:-1], features)

    @nn.compact
    def __call__(
        self,
        x_BSD: jax.Array,
        angles: jax.Array | None,
        train: bool,
        cache: tuple[jax.Array, jax.Array] | None = None,
        start: jax.Array | int = 0,
    ):
        """Runs the block.

        Args:
          x_BSD: the tokens.
          angles: rotary angles of the tokens, or None.
          train: whether dropout is on.
          cache: keys and values of earlier tokens; the new ones are written at `start`.
          start: index of the first token.

        Returns:
          the tokens after the block, and the updated cache.
        """
        b, s, width = x_BSD.shape
        drop = partial(nn.Dropout(self.dropout), deterministic=not train)
        after = self.norm == "bert"
        norm_attention = NORMS[self.norm](dtype=self.dtype, name="norm_attention")
        norm_feed_forward = NORMS[self.norm](dtype=self.dtype, name="norm_feed_forward")
        normed = x_BSD if after else norm_attention(x_BSD)
        qkv = self._dense(normed, 3 * width, "qkv").reshape(b, s, 3, self.heads, -1)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        if cache is None:
            mixed = attend(q, k, v, jnp.tri(s, dtype=bool) if self.causal else None)
        else:
            k, v = (
                jax.lax.dynamic_update_slice_in_dim(kept, new.astype(kept.dtype), start, axis=2)
                for kept, new in zip(cache, (k, v), strict=True)
            )
            cache = (k, v)
            seen = jnp.arange(k.shape[2])[None, :] <= start + jnp.arange(s)[:, None]
            mixed = attend(q, k, v, seen)
        mixed = mixed.swapaxes(1, 2).reshape(b, s, width)
        x_BSD += drop(self._dense(mixed, width, "out", self.out_init))

        x_BSD = norm_attention(x_BSD) if after else x_BSD
        normed = x_BSD if after else norm_feed_forward(x_BSD)
        if self.activation == "swiglu":  # Shazeer 2020
            gate, h = jnp.split(self._dense(normed, 2 * self.hidden, "up"), 2, axis=-1)
            h = nn.silu(gate) * h
        else:
            h = ACTIVATIONS[self.activation](self._dense(normed, self.hidden, "up"))
        x_BSD += drop(self._dense(h, width, "down", self.out_init))
        return norm_feed_forward(x_BSD) if after else x_BSD, cache

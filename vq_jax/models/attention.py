"""Attention over tokens, and the rotary embedding of their places.

Shape suffixes: B images, h heads, S tokens that ask, T tokens that are asked, d width of a head.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def attend(
    q_BhSd: jax.Array, k_BhTd: jax.Array, v_BhTd: jax.Array, seen_ST: jax.Array | None
) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v, the softmax in float32 (Vaswani et al. 2017, eq. 1).

    `jax.nn.dot_product_attention`, except for many queries on the CPU, where XLA makes more passes
    over [B, h, S, T] of it than it takes: there the scale is put on the queries, the mask is a term,
    and what is divided by the sum is the result.

    Args:
      q_BhSd, k_BhTd, v_BhTd: queries, keys and values.
      seen_ST: bool, which tokens each looks at; None is all.

    Returns:
      [B, h, S, d], of the dtype of `v_BhTd`.
    """
    if q_BhSd.shape[2] == 1 or jax.default_backend() != "cpu":
        q, k, v = (x.swapaxes(1, 2) for x in (q_BhSd, k_BhTd, v_BhTd))
        mask = None if seen_ST is None else seen_ST[None, None]
        return jax.nn.dot_product_attention(q, k, v, mask=mask).swapaxes(1, 2)
    q_BhSd = q_BhSd * np.asarray(q_BhSd.shape[-1] ** -0.5, q_BhSd.dtype)
    logits_BhST = jnp.einsum("bhsd,bhtd->bhst", q_BhSd, k_BhTd, preferred_element_type=jnp.float32)
    if seen_ST is not None:
        logits_BhST += jnp.where(seen_ST, 0.0, -1e30)
    exp_BhST = jnp.exp(logits_BhST - lax.stop_gradient(logits_BhST.max(-1, keepdims=True)))
    mixed_BhSd = jnp.einsum(
        "bhst,bhtd->bhsd", exp_BhST.astype(v_BhTd.dtype), v_BhTd, preferred_element_type=jnp.float32
    )
    return (mixed_BhSd / exp_BhST.sum(-1, keepdims=True)).astype(v_BhTd.dtype)


def rotary_angles(places_S2: np.ndarray, head_dim: int) -> np.ndarray:
    """Angles by which rotary embeddings turn each pair of a head's dimensions (Su et al. 2021).

    In two dimensions the first half of the pairs turns with the row, the second with the column.

    Args:
      places_S2: float [S, 2], row and column of each token.
      head_dim: dimensions of a head, a multiple of 4.

    Returns:
      float32 [S, head_dim / 2], in radians.
    """
    pairs = head_dim // 4
    rates = 10000.0 ** (-np.arange(pairs) / pairs)
    return (places_S2[:, :, None] * rates).reshape(len(places_S2), -1).astype(np.float32)


def rotate(x_BhSd: jax.Array, angles: jax.Array) -> jax.Array:
    """Turns the pairs (i, i + d / 2) of each head's dimensions by angles [S, d / 2] or [B, S, d / 2]."""
    angles = angles[..., None, :, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = jnp.split(x_BhSd.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x_BhSd.dtype)

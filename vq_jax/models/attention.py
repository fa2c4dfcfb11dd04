"""Attention over tokens, and rotary embeddings of their coordinates.

Shape suffixes: B examples, h heads, S queries, T keys, d width of a head, A axes.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def attend(
    q_BhSd: jax.Array, k_BhTd: jax.Array, v_BhTd: jax.Array, seen_ST: jax.Array | None
) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v, the softmax in float32 (Vaswani et al. 2017, eq. 1).

    Uses `jax.nn.dot_product_attention`, except for many queries on the CPU, where XLA makes more
    passes over the [B, h, S, T] array than needed. There the queries are scaled, the mask is added to
    the logits, and the output is divided by the sum.

    Args:
      q_BhSd, k_BhTd, v_BhTd: queries, keys and values.
      seen_ST: bool, True where a query sees a key; None is everywhere.

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


def axis_sizes(grid: tuple[int, ...]) -> tuple[int, ...]:
    """Sizes of a grid's axes, with ones in front of a grid of fewer than two axes."""
    return (1,) * (2 - len(grid)) + tuple(grid)


def grid_coordinates(grid: tuple[int, ...], over: tuple[int, ...]) -> np.ndarray:
    """Coordinates of a grid's cells, where the grid covers the same area as another one.

    Args:
      grid: its shape, of any number of axes.
      over: shape of the grid whose cells are 1 apart, of as many axes.

    Returns:
      float [cells, A], with A the number of `axis_sizes`.
    """
    sizes = zip(axis_sizes(grid), axis_sizes(over), strict=True)
    axes = [(np.arange(cells) + 0.5) * whole / cells - 0.5 for cells, whole in sizes]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))


def rotary_angles(coordinates_SA: np.ndarray, head_dim: int) -> np.ndarray:
    """Rotation angles of each pair of a head's dimensions (Su et al. 2021).

    The pairs are divided evenly among the axes, the first axis first.

    Args:
      coordinates_SA: float [S, A], coordinates of each token.
      head_dim: dimensions of a head, even.

    Returns:
      float32 [S, head_dim / 2], in radians.
    """
    pairs, axes = head_dim // 2, coordinates_SA.shape[1]
    parts = []
    for axis in range(axes):
        count = pairs * (axis + 1) // axes - pairs * axis // axes
        rates = 10000.0 ** (-np.arange(count) / count)
        parts.append(coordinates_SA[:, axis, None] * rates)
    return np.concatenate(parts, axis=1).astype(np.float32)


def rotate(x_BhSd: jax.Array, angles: jax.Array) -> jax.Array:
    """Rotates the pairs (i, i + d / 2) of each head's dimensions by angles [S, d / 2] or [B, S, d / 2]."""
    angles = angles[..., None, :, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = jnp.split(x_BhSd.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x_BhSd.dtype)

"""Helpers that process an array of N rows in blocks of rows.

An [N, K] array of the scores of N latents against K codes can be too large for memory. These
helpers let a computation hold the scores of one block of latents at a time.

Array names end with one letter per axis: N rows, S blocks, B rows of a block, K codes.
"""

import jax
import jax.numpy as jnp

# Number of scores held at a time. A CPU is fastest if they fit into its cache.
MAX_SCORES = 2**20


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """Computes the matrix product `a @ b` with `precision="highest"`."""
    return jnp.matmul(a, b, precision="highest")


def split_rows(max_rows: int, *arrays_N: jax.Array) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """Splits arrays of N rows into S blocks of B rows, with B <= `max_rows`.

    Block s holds the rows s, s + S, s + 2 S, ... With this stride, rows that are sharded over
    devices stay on their devices. S is the smallest divisor of N from ceil(N / max_rows) to twice
    that. If there is none, S is ceil(N / max_rows) and rows of zeros are appended as padding.

    Args:
      max_rows: largest number of rows in a block.
      *arrays_N: arrays [N, ...] with the same N.

    Returns:
      The arrays as [S, B, ...], and a bool mask [S, B] that is False for padding.
    """
    n = arrays_N[0].shape[0]
    min_blocks = -(-n // max_rows)
    candidates = range(min_blocks, 2 * min_blocks + 1)
    blocks = next((b for b in candidates if n % b == 0), min_blocks)
    rows = -(-n // blocks)

    def split(a):
        a = jnp.pad(a, ((0, blocks * rows - n), *((0, 0) for _ in a.shape[1:])))
        return a.reshape(rows, blocks, *a.shape[1:]).swapaxes(0, 1)

    return tuple(split(a) for a in arrays_N), split(jnp.ones((n,), bool))


def merge_rows(blocks_SB: jax.Array, n: int) -> jax.Array:
    """Inverts `split_rows`: merges blocks [S, B, ...] into the original rows [n, ...]."""
    return blocks_SB.swapaxes(0, 1).reshape(-1, *blocks_SB.shape[2:])[:n]


def max_and_argmax(scores_BK: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Finds the best code of each row.

    Args:
      scores_BK: float [B, K].

    Returns:
      The largest score of each row, [B], and the first index with this score, int32 [B]. The index
      of a row that contains NaN is K - 1.
    """
    k = scores_BK.shape[1]
    best_B = scores_BK.max(axis=1)
    # On the CPU, XLA runs a max and a min several times faster than one argmin. The min over the
    # indices resolves ties as argmin does.
    index_K = jnp.arange(k, dtype=jnp.int32)
    return best_B, jnp.min(jnp.where(scores_BK >= best_B[:, None], index_K, k - 1), axis=1)

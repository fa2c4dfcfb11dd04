"""Nearest-code search, gradient estimators and codebook upkeep as pure functions.

Latents are float [N, D] and a codebook is float [K, D]; the arithmetic is float32 whatever comes in.
"""

import jax
import jax.numpy as jnp

from vq_jax.collectives import pmean, psum, sample_rows
from vq_jax.metrics import code_counts

# Scores are held for this many numbers at a time: larger searches run in blocks of rows.
_MAX_SCORES = 2**20


def _nearest_in_block(z_BD: jax.Array, codebook_KD: jax.Array, half_norm_K: jax.Array) -> jax.Array:
    scores = jnp.matmul(z_BD, codebook_KD.T, precision="highest") - half_norm_K
    best = scores.max(axis=1, keepdims=True)
    index = jnp.arange(codebook_KD.shape[0], dtype=jnp.int32)
    # Min over the indices that reach the maximum is argmin's own tie rule, and XLA runs a max and
    # a min several times faster than one argmin on the CPU. A row of NaN reaches nothing.
    first = jnp.min(jnp.where(scores >= best, index, codebook_KD.shape[0] - 1), axis=1)
    return first.astype(jnp.int32)


def nearest_codes(z: jax.Array, codebook_KD: jax.Array) -> jax.Array:
    """The entry nearest to each latent: argmin_k |z - e_k|^2 (van den Oord et al. 2017, eq. 1).

    |z|^2 is the same for every entry, so the search maximises z.e_k - |e_k|^2 / 2. Rows are searched
    in blocks, so the [tokens, K] scores are never held whole when they are large.

    Args:
      z: float [..., D] latents.
      codebook_KD: float [K, D].

    Returns:
      int32 [...] in [0, K): `jnp.argmin` of the distances, the first index of equals.
    """
    z_ND = jax.lax.stop_gradient(z).reshape(-1, z.shape[-1]).astype(jnp.float32)
    codebook_KD = jax.lax.stop_gradient(codebook_KD).astype(jnp.float32)
    half_norm_K = 0.5 * jnp.sum(jnp.square(codebook_KD), axis=1)
    n, k = z_ND.shape[0], codebook_KD.shape[0]
    rows = max(1, _MAX_SCORES // k)
    if n <= rows:
        codes = _nearest_in_block(z_ND, codebook_KD, half_norm_K)
    else:
        codes = jax.lax.map(
            lambda z_D: _nearest_in_block(z_D[None], codebook_KD, half_norm_K)[0],
            z_ND,
            batch_size=rows,
        )
    return codes.reshape(z.shape[:-1])


def straight_through(z: jax.Array, z_q: jax.Array) -> jax.Array:
    """The value of `z_q` with the gradient of `z` (Bengio et al. 2013; van den Oord et al. 2017)."""
    # Written with the zero on the right, so that the value is z_q to the last bit.
    return jax.lax.stop_gradient(z_q) + (z - jax.lax.stop_gradient(z))


def code_sums(
    z_ND: jax.Array, codes_N: jax.Array, num_codes: int, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array]:
    """Adds up the latents that fell on each code, over all devices.

    Returns:
      counts, float32 [K], and sums, float32 [K, D].
    """
    counts = code_counts(codes_N, num_codes)
    sums = jnp.zeros((num_codes, z_ND.shape[1]), jnp.float32).at[codes_N].add(z_ND)
    return psum((counts, sums), axis_name)


def kmeans(
    key: jax.Array,
    z_ND: jax.Array,
    num_codes: int,
    iterations: int = 10,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Lloyd's k-means over the latents of all devices, started from sampled latents.

    A cluster that loses all its members starts again at a random latent.

    Args:
      key: PRNG key, the same on every device.
      z_ND: float [N, D], this device's latents.
      num_codes: K.
      iterations: how many rounds of assign and average.
      axis_name: mapped axis, or None.

    Returns:
      centroids, float32 [K, D], and the counts of the last assignment, float32 [K]; the same on
      every device.
    """
    z_ND = jax.lax.stop_gradient(z_ND).astype(jnp.float32)
    centroids = sample_rows(key, z_ND, num_codes, axis_name)

    def round_(i, carry):
        centroids, _ = carry
        counts, sums = code_sums(z_ND, nearest_codes(z_ND, centroids), num_codes, axis_name)
        fresh = sample_rows(jax.random.fold_in(key, i + 1), z_ND, num_codes, axis_name)
        means = sums / jnp.maximum(counts, 1.0)[:, None]
        return jnp.where(counts[:, None] > 0, means, fresh), counts

    zeros = jnp.zeros((num_codes,), jnp.float32)
    return jax.lax.fori_loop(0, iterations, round_, (centroids, zeros))


def ema_codebook(cluster_size_K: jax.Array, embed_sum_KD: jax.Array, epsilon: float = 1e-5):
    """The codebook that moving averages imply (van den Oord et al. 2017, appendix A.1, eq. 6-8).

    Args:
      cluster_size_K: float32 [K], moving average of each code's count.
      embed_sum_KD: float32 [K, D], moving average of the sum of its latents.
      epsilon: Laplace smoothing of the counts.

    Returns:
      float32 [K, D].
    """
    total = cluster_size_K.sum()
    k = cluster_size_K.shape[0]
    smoothed = (cluster_size_K + epsilon) / (total + k * epsilon) * total
    return embed_sum_KD / jnp.maximum(smoothed, 1e-12)[:, None]


def variance(z_ND: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Variance of each latent dimension over the rows of all devices: float [N, D] -> [D]."""
    mean_D = pmean(z_ND.mean(0), axis_name)
    return pmean(jnp.square(z_ND - mean_D).mean(0), axis_name)


def mean_assignment(
    z_ND: jax.Array, codebook_KD: jax.Array, axis_name: str | None = None
) -> jax.Array:
    """Average soft assignment, softmax_k(-|z - e_k|^2), of the latents of all devices to the codes.

    Rows are taken in blocks whose scores are computed again for the gradient, so the [N, K] array
    is never held whole when it is large.

    Args:
      z_ND: float32 [N, D].
      codebook_KD: float32 [K, D].
      axis_name: mapped axis, or None.

    Returns:
      float32 [K], summing to 1.
    """

    norm_K = jnp.sum(jnp.square(codebook_KD), axis=1)
    rows = min(z_ND.shape[0], max(1, _MAX_SCORES // codebook_KD.shape[0]))
    blocks = -(-z_ND.shape[0] // rows)
    padded = jnp.pad(z_ND, ((0, blocks * rows - z_ND.shape[0]), (0, 0)))
    valid = (jnp.arange(blocks * rows) < z_ND.shape[0]).astype(jnp.float32)

    @jax.checkpoint
    def add(total_K, block):
        z_BD, valid_B = block
        scores_BK = 2.0 * jnp.matmul(z_BD, codebook_KD.T, precision="highest") - norm_K
        return total_K + valid_B @ jax.nn.softmax(scores_BK), None

    zeros = jnp.zeros((codebook_KD.shape[0],), jnp.float32)
    block = (padded.reshape(blocks, rows, -1), valid.reshape(blocks, rows))
    total_K, _ = jax.lax.scan(add, zeros, block)
    return pmean(total_K / z_ND.shape[0], axis_name)

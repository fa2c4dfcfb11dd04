"""Nearest-code search, gradient estimators, k-means and codebook statistics, as pure functions.

Latents are float [N, D] and a codebook is float [K, D]. All arithmetic is in float32, whatever the
input dtype. The searches never hold a large [N, K] array of scores; they compute it in blocks.

Array names end with one letter per axis: N latents, D dimensions, K codes, S blocks, B rows of a
block, C codes of a block.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from vq_jax.collectives import first_row, pmean, psum, sample_rows
from vq_jax.metrics import code_counts
from vq_jax.quantizers import blockwise
from vq_jax.quantizers.blockwise import matmul, max_and_argmax, merge_rows, split_rows

# Limits of a search: codes per block on the CPU, and scores held at a time on an accelerator.
_CPU_CODES_PER_BLOCK = 2048
_ACCELERATOR_MAX_SCORES = 2**26


# --- search ---------------------------------------------------------------------------------------


def _search_rows(z_BD: jax.Array, codebook_SCD: jax.Array, half_norm_SC: jax.Array) -> jax.Array:
    """Finds the nearest codes of B rows, with a running maximum over S blocks of C codes."""
    width = codebook_SCD.shape[1]

    def best_of(codebook_CD, half_norm_C):
        return max_and_argmax(matmul(z_BD, codebook_CD.T) - half_norm_C)

    if codebook_SCD.shape[0] == 1:
        return best_of(codebook_SCD[0], half_norm_SC[0])[1]

    def step(carry, block):
        best_B, code_B = carry
        start, codebook_CD, half_norm_C = block
        block_best_B, index_B = best_of(codebook_CD, half_norm_C)
        better = block_best_B > best_B  # strict, so the first of equal entries wins
        code_B = jnp.where(better, start + index_B, code_B)
        return (jnp.where(better, block_best_B, best_B), code_B), None

    rows = z_BD.shape[0]
    initial = (jnp.full((rows,), -jnp.inf), jnp.zeros((rows,), jnp.int32))
    starts = width * jnp.arange(codebook_SCD.shape[0], dtype=jnp.int32)
    return jax.lax.scan(step, initial, (starts, codebook_SCD, half_norm_SC))[0][1]


def _search(
    z_ND: jax.Array, codebook_KD: jax.Array, *, codes_per_block: int, max_scores: int
) -> jax.Array:
    """Finds the nearest codes, int32 [N], while holding about `max_scores` scores at a time."""
    n, k = z_ND.shape[0], codebook_KD.shape[0]
    half_norm_K = 0.5 * jnp.sum(jnp.square(codebook_KD), axis=1)
    width = min(k, codes_per_block)
    padding = -k % width
    codebook_SCD = jnp.pad(codebook_KD, ((0, padding), (0, 0))).reshape(-1, width, z_ND.shape[1])
    # An infinite norm keeps padding from ever being the nearest entry.
    half_norm_SC = jnp.pad(half_norm_K, (0, padding), constant_values=jnp.inf).reshape(-1, width)
    rows = max(1, max_scores // width)
    if n <= rows:
        return _search_rows(z_ND, codebook_SCD, half_norm_SC)
    (z_SBD,), _ = split_rows(rows, z_ND)
    codes_SB = jax.lax.map(lambda z_BD: _search_rows(z_BD, codebook_SCD, half_norm_SC), z_SBD)
    return merge_rows(codes_SB, n)


def nearest_codes(z: jax.Array, codebook_KD: jax.Array) -> jax.Array:
    """Finds the nearest entry of each latent (van den Oord et al. 2017, eq. 1).

    The result is argmin_k |z - e_k|^2. |z|^2 is the same for every entry, so the search maximises
    z.e_k - |e_k|^2 / 2. It runs over blocks of rows and of codes with a running maximum.

    Args:
      z: float [..., D] latents.
      codebook_KD: float [K, D].

    Returns:
      int32 [...] in [0, K). Of equally near entries, the first one, as with `jnp.argmin`.
    """
    z_ND = jax.lax.stop_gradient(z).reshape(-1, z.shape[-1]).astype(jnp.float32)
    codebook_KD = jax.lax.stop_gradient(codebook_KD).astype(jnp.float32)
    codes_N = jax.lax.platform_dependent(
        z_ND,
        codebook_KD,
        cpu=partial(_search, codes_per_block=_CPU_CODES_PER_BLOCK, max_scores=blockwise.MAX_SCORES),
        default=partial(_search, codes_per_block=2**18, max_scores=_ACCELERATOR_MAX_SCORES),
    )
    return codes_N.reshape(z.shape[:-1])


def nearest_other(codebook_KD: jax.Array) -> jax.Array:
    """Computes the distance of each entry to its nearest other entry: [K, D] -> float32 [K]."""
    codebook_KD = codebook_KD.astype(jnp.float32)
    k = codebook_KD.shape[0]
    norm_K = jnp.sum(jnp.square(codebook_KD), axis=1)
    (entry_SBD, norm_SB, index_SB), _ = split_rows(
        max(1, blockwise.MAX_SCORES // k), codebook_KD, norm_K, jnp.arange(k)
    )

    def nearest(block):
        entry_BD, norm_B, index_B = block
        squared = norm_B[:, None] + norm_K - 2 * matmul(entry_BD, codebook_KD.T)
        return jnp.min(jnp.where(index_B[:, None] == jnp.arange(k), jnp.inf, squared), axis=1)

    squared_K = merge_rows(jax.lax.map(nearest, (entry_SBD, norm_SB, index_SB)), k)
    return jnp.sqrt(jnp.maximum(squared_K, 0.0))


# --- gradient estimators --------------------------------------------------------------------------


def with_gradient_of(value: jax.Array, path: jax.Array) -> jax.Array:
    """Returns exactly `value`, with the gradient of `path`."""
    # The difference is computed first and is exactly 0, so the sum does not round.
    return jax.lax.stop_gradient(value) + (path - jax.lax.stop_gradient(path))


def straight_through(z: jax.Array, z_q: jax.Array) -> jax.Array:
    """Returns `z_q` with the gradient of `z` (Bengio et al. 2013; van den Oord et al. 2017)."""
    return with_gradient_of(z_q, z)


def rotation_trick(z: jax.Array, z_q: jax.Array) -> jax.Array:
    """Returns `z_q` with the gradient of a rotation and scaling of `z`.

    See Fifty et al. 2024, sec. 4.2: z_q = (|q| / |e|) R e with R = I - 2 w w' + 2 q^ e^'. Here e is
    z and q is z_q, e^ and q^ are their unit vectors, and w is the unit vector of e^ + q^. R and the
    scale are constant in the gradient. R is applied to z as two inner products, so no D x D matrix
    is built.

    Args:
      z: float32 [..., D] latents.
      z_q: float32 [..., D] quantized latents.

    Returns:
      float32 [..., D].
    """

    def unit(x):
        norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
        return x / jnp.maximum(norm, 1e-6), norm

    def dot(a, b):
        return jnp.sum(a * b, axis=-1, keepdims=True)

    constant = jax.lax.stop_gradient
    e, e_norm = unit(constant(z))
    q, q_norm = unit(constant(z_q))
    w, _ = unit(e + q)
    rotated = z - 2 * w * dot(w, z) + 2 * q * dot(e, z)
    return with_gradient_of(z_q, rotated * (q_norm / jnp.maximum(e_norm, 1e-6)))


ESTIMATORS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "straight_through": straight_through,
    "rotation": rotation_trick,
}


# --- codebooks ------------------------------------------------------------------------------------


def code_sums(
    z_ND: jax.Array, codes_N: jax.Array, num_codes: int, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array]:
    """Counts and sums the latents of each code, over all devices.

    Args:
      z_ND: float32 [N, D], the latents of this device.
      codes_N: int32 [N], the code of each latent.
      num_codes: K.
      axis_name: mapped axis, or None.

    Returns:
      Counts, float32 [K], and sums, float32 [K, D].
    """
    counts = code_counts(codes_N, num_codes)
    sums = jnp.zeros((num_codes, z_ND.shape[1]), jnp.float32).at[codes_N].add(z_ND)
    return psum((counts, sums), axis_name)


def kmeans(
    key: jax.Array,
    z_ND: jax.Array,
    num_codes: int,
    iterations: int = 10,
    unit_norm: bool = False,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Runs Lloyd's k-means over the latents of all devices, starting from sampled latents.

    A cluster without members is moved to a random latent.

    Args:
      key: PRNG key, the same on every device.
      z_ND: float [N, D], the latents of this device.
      num_codes: K.
      iterations: number of rounds of assigning and averaging. With 0, the result is the sampled
        latents with equal counts.
      unit_norm: whether latents and centroids have length 1 (spherical k-means).
      axis_name: mapped axis, or None.

    Returns:
      Centroids, float32 [K, D], and the counts of the last assignment, float32 [K]. Both are the
      same on every device.
    """
    z_ND = jax.lax.stop_gradient(z_ND).astype(jnp.float32)
    centroids = sample_rows(key, z_ND, num_codes, axis_name)

    def iteration(i, carry):
        centroids, _ = carry
        counts, sums = code_sums(z_ND, nearest_codes(z_ND, centroids), num_codes, axis_name)
        sampled = sample_rows(jax.random.fold_in(key, i + 1), z_ND, num_codes, axis_name)
        means = sums / jnp.maximum(counts, 1.0)[:, None]
        means = normalise(means) if unit_norm else means
        return jnp.where(counts[:, None] > 0, means, sampled), counts

    start = centroids, _equal_counts(len(z_ND), num_codes, axis_name)
    return jax.lax.fori_loop(0, iterations, iteration, start)


def _equal_counts(rows: int, num_codes: int, axis_name: str | None) -> jax.Array:
    """The counts if all codes were as frequent, float32 [K], of `rows` latents on each device."""
    return psum(jnp.full((num_codes,), rows / num_codes, jnp.float32), axis_name)


def gaussian_entries(
    key: jax.Array,
    z_ND: jax.Array,
    num_codes: int,
    unit_norm: bool = False,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Draws entries from a normal distribution with the moments of the latents of all devices.

    Args and returns are those of `kmeans`, with equal counts.
    """
    z_ND = jax.lax.stop_gradient(z_ND).astype(jnp.float32)
    mean_D = pmean(z_ND.mean(0), axis_name)
    noise_KD = jax.random.normal(key, (num_codes, z_ND.shape[1]))
    entries_KD = mean_D + jnp.sqrt(variance(z_ND, axis_name)) * noise_KD
    entries_KD = normalise(entries_KD) if unit_norm else entries_KD
    return entries_KD, _equal_counts(len(z_ND), num_codes, axis_name)


def ema_codebook(
    cluster_size_K: jax.Array, embed_sum_KD: jax.Array, epsilon: float = 1e-5
) -> jax.Array:
    """Computes a codebook from moving averages (van den Oord et al. 2017, appendix A.1, eq. 6-8).

    Args:
      cluster_size_K: float32 [K], moving average of each code's count.
      embed_sum_KD: float32 [K, D], moving average of the sum of each code's latents.
      epsilon: Laplace smoothing of the counts.

    Returns:
      float32 [K, D].
    """
    total = cluster_size_K.sum()
    k = cluster_size_K.shape[0]
    smoothed = (cluster_size_K + epsilon) / (total + k * epsilon) * total
    return embed_sum_KD / jnp.maximum(smoothed, 1e-12)[:, None]


def normalise(x: jax.Array) -> jax.Array:
    """Scales vectors to length 1 along the last axis. A zero vector stays zero."""
    # The maximum is taken inside the square root, so that the gradient at 0 is finite.
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, 1e-12))


def orthogonality(codebook_KD: jax.Array) -> jax.Array:
    """Measures how far the entries' directions are from orthogonal (Shin et al. 2021, eq. 2).

    Computes |C C'|^2 / K^2 - 1 / K, where C holds the entries scaled to length 1. The squared norm
    of C C' [K, K] equals that of C' C [D, D], and only the latter is built.

    Args:
      codebook_KD: float32 [K, D].

    Returns:
      float32 [], 0 for orthogonal entries.
    """
    k = codebook_KD.shape[0]
    c_KD = normalise(codebook_KD)
    return jnp.sum(jnp.square(matmul(c_KD.T, c_KD))) / k**2 - 1 / k


# --- batches over several devices -----------------------------------------------------------------


def row_keys(key: jax.Array | None, rows: int, axis_name: str | None = None) -> jax.Array | None:
    """Returns a PRNG key for each row of this device.

    The key of a row does not depend on the number of devices that share the batch.

    Args:
      key: PRNG key, the same on every device, or None.
      rows: number of rows on this device.
      axis_name: mapped axis, or None.

    Returns:
      Keys [rows], or None if `key` is None.
    """
    if key is None:
        return None
    numbers = first_row(rows, axis_name) + jnp.arange(rows)
    return jax.vmap(partial(jax.random.fold_in, key))(numbers)


def draw_kept(
    key: jax.Array, rows: int, most: int, share: float, axis_name: str | None = None
) -> jax.Array:
    """Draws how many of the first `most` things each row keeps, int32 [rows].

    About `share` of the rows keep a random number of them, 1 to `most`; the others keep all.

    Args:
      key, rows, axis_name: see `row_keys`.
      most: number of things.
      share: of the rows.
    """

    def draw(key):
        dropout_key, count_key = jax.random.split(key)
        fewer = jax.random.randint(count_key, (), 1, most + 1)
        return jnp.where(jax.random.bernoulli(dropout_key, share), fewer, most)

    return jax.vmap(draw)(row_keys(key, rows, axis_name))


def variance(z_ND: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Computes each dimension's variance over the rows of all devices: float [N, D] -> [D]."""
    mean_D = pmean(z_ND.mean(0), axis_name)
    return pmean(jnp.square(z_ND - mean_D).mean(0), axis_name)

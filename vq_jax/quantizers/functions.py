"""Nearest-code search, gradient estimators, soft assignments and codebook upkeep, as pure functions.

Latents are float [N, D] and a codebook is float [K, D]; the arithmetic is float32 whatever comes in.
Nothing here holds an [N, K] array whole when it is large: what needs one takes it in blocks, and
computes a block anew for the gradient.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from vq_jax import losses
from vq_jax.collectives import pmean, psum, sample_rows
from vq_jax.metrics import code_counts

# Scores are held for this many numbers at a time. A CPU is fastest when they stay in its cache.
_MAX_SCORES = 2**20
_MAX_SCORES_ACCELERATOR = 2**26
# A search on the CPU looks at this many codes at a time.
_CODES = 2048


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision="highest")


def _row_blocks(most: int, *arrays_N: jax.Array) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """Arrays of N rows as [blocks, rows, ...], at most `most` rows each, and which rows are real.

    A block takes every n-th row, so that rows spread over devices stay where they are. Zeros fill up
    what no number of blocks near the least divides.
    """
    n = arrays_N[0].shape[0]
    least = -(-n // most)
    blocks = next((b for b in range(least, 2 * least + 1) if n % b == 0), least)
    rows = -(-n // blocks)

    def split(a):
        a = jnp.pad(a, ((0, blocks * rows - n), *((0, 0) for _ in a.shape[1:])))
        return a.reshape(rows, blocks, *a.shape[1:]).swapaxes(0, 1)

    return tuple(split(a) for a in arrays_N), split(jnp.ones((n,), bool))


def _unblocked(blocks_SB: jax.Array, n: int) -> jax.Array:
    """[blocks, rows, ...] back to the N rows that `_row_blocks` was given."""
    return blocks_SB.swapaxes(0, 1).reshape(-1, *blocks_SB.shape[2:])[:n]


# --- search ---------------------------------------------------------------------------------------


def _first_of_best(scores_BK: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest score of each row, and the first index that reaches it."""
    k = scores_BK.shape[1]
    best_B = scores_BK.max(axis=1)
    # Min over the indices that reach the maximum is argmin's own tie rule, and XLA runs a max and
    # a min several times faster than one argmin on the CPU. A row of NaN reaches nothing.
    index_K = jnp.arange(k, dtype=jnp.int32)
    return best_B, jnp.min(jnp.where(scores_BK >= best_B[:, None], index_K, k - 1), axis=1)


def _search_rows(z_BD: jax.Array, codebook_SCD: jax.Array, half_norm_SC: jax.Array) -> jax.Array:
    """Nearest codes of a block of rows, over S blocks of C codes with a running maximum."""
    width = codebook_SCD.shape[1]

    def score(codebook_CD, half_norm_C):
        return _first_of_best(_matmul(z_BD, codebook_CD.T) - half_norm_C)

    if codebook_SCD.shape[0] == 1:
        return score(codebook_SCD[0], half_norm_SC[0])[1]

    def step(carry, block):
        best_B, code_B = carry
        start, codebook_CD, half_norm_C = block
        block_best_B, index_B = score(codebook_CD, half_norm_C)
        better = block_best_B > best_B  # an equal one comes later: the first stays
        code_B = jnp.where(better, start + index_B, code_B)
        return (jnp.where(better, block_best_B, best_B), code_B), None

    rows = z_BD.shape[0]
    first = (jnp.full((rows,), -jnp.inf), jnp.zeros((rows,), jnp.int32))
    starts = width * jnp.arange(codebook_SCD.shape[0], dtype=jnp.int32)
    return jax.lax.scan(step, first, (starts, codebook_SCD, half_norm_SC))[0][1]


def _search(z_ND: jax.Array, codebook_KD: jax.Array, *, codes: int, scores: int) -> jax.Array:
    n, k = z_ND.shape[0], codebook_KD.shape[0]
    half_norm_K = 0.5 * jnp.sum(jnp.square(codebook_KD), axis=1)
    width = min(k, codes)
    spare = -k % width
    codebook_SCD = jnp.pad(codebook_KD, ((0, spare), (0, 0))).reshape(-1, width, z_ND.shape[1])
    half_norm_SC = jnp.pad(half_norm_K, (0, spare), constant_values=jnp.inf).reshape(-1, width)
    rows = max(1, scores // width)
    if n <= rows:
        return _search_rows(z_ND, codebook_SCD, half_norm_SC)
    (z_SBD,), _ = _row_blocks(rows, z_ND)
    found_SB = jax.lax.map(lambda z_BD: _search_rows(z_BD, codebook_SCD, half_norm_SC), z_SBD)
    return _unblocked(found_SB, n)


def nearest_codes(z: jax.Array, codebook_KD: jax.Array) -> jax.Array:
    """The entry nearest to each latent: argmin_k |z - e_k|^2 (van den Oord et al. 2017, eq. 1).

    |z|^2 is the same for every entry, so the search maximises z.e_k - |e_k|^2 / 2, over blocks of
    rows and of codes with a running maximum.

    Args:
      z: float [..., D] latents.
      codebook_KD: float [K, D].

    Returns:
      int32 [...] in [0, K): `jnp.argmin` of the distances, the first index of equals.
    """
    z_ND = jax.lax.stop_gradient(z).reshape(-1, z.shape[-1]).astype(jnp.float32)
    codebook_KD = jax.lax.stop_gradient(codebook_KD).astype(jnp.float32)
    codes_N = jax.lax.platform_dependent(
        z_ND,
        codebook_KD,
        cpu=partial(_search, codes=_CODES, scores=_MAX_SCORES),
        default=partial(_search, codes=2**18, scores=_MAX_SCORES_ACCELERATOR),
    )
    return codes_N.reshape(z.shape[:-1])


def nearest_other(codebook_KD: jax.Array) -> jax.Array:
    """Distance of each entry to the one nearest to it: float [K, D] -> float32 [K]."""
    codebook_KD = codebook_KD.astype(jnp.float32)
    k = codebook_KD.shape[0]
    norm_K = jnp.sum(jnp.square(codebook_KD), axis=1)
    (entry_SBD, norm_SB, index_SB), _ = _row_blocks(
        max(1, _MAX_SCORES // k), codebook_KD, norm_K, jnp.arange(k)
    )

    def nearest(block):
        entry_BD, norm_B, index_B = block
        squared = norm_B[:, None] + norm_K - 2 * _matmul(entry_BD, codebook_KD.T)
        return jnp.min(jnp.where(index_B[:, None] == jnp.arange(k), jnp.inf, squared), axis=1)

    squared_K = _unblocked(jax.lax.map(nearest, (entry_SBD, norm_SB, index_SB)), k)
    return jnp.sqrt(jnp.maximum(squared_K, 0.0))


# --- gradient estimators --------------------------------------------------------------------------


def with_gradient_of(value: jax.Array, path: jax.Array) -> jax.Array:
    """The value of `value`, to the last bit, with the gradient of `path`."""
    # Written with the zero on the right, or the sum would round.
    return jax.lax.stop_gradient(value) + (path - jax.lax.stop_gradient(path))


def straight_through(z: jax.Array, z_q: jax.Array) -> jax.Array:
    """The value of `z_q` with the gradient of `z` (Bengio et al. 2013; van den Oord et al. 2017)."""
    return with_gradient_of(z_q, z)


def rotation_trick(z: jax.Array, z_q: jax.Array) -> jax.Array:
    """The value of `z_q`, as a rotation and scaling of `z` that are constant in the gradient.

    Fifty et al. 2024, sec. 4.2: z_q = (|q| / |e|) R e with R = I - 2 w w' + 2 q^ e^', where e^ and q^
    are the unit vectors of z and z_q and w that of their sum. R only ever meets z, as two inner
    products, so no D x D matrix is built.

    Args:
      z, z_q: float32 [..., D].
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


# --- soft assignments -----------------------------------------------------------------------------
#
# The softmax over codes of logits_nk = z_n . keys_k + bias_k, in blocks of rows.


def distance_logits(
    codebook_KD: jax.Array, temperature: float | jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Keys [K, D] and bias [K] that make the logits -|z - e_k|^2 / temperature, up to |z|^2."""
    codebook_KD = codebook_KD.astype(jnp.float32)
    norm_K = jnp.sum(jnp.square(codebook_KD), axis=1)
    return 2.0 * codebook_KD / temperature, -norm_K / temperature


def _soft_rows(k: int) -> int:
    """How many rows' logits of k codes are held at a time."""
    return max(1, 4 * _MAX_SCORES // k)


@jax.custom_vjp
def _assignments(z_ND, keys_KD, bias_K):
    (z_SBD,), valid_SB = _row_blocks(_soft_rows(bias_K.shape[0]), z_ND)

    def add(carry, block):
        entropy, total_K = carry
        z_BD, valid_B = block
        logp_BK = jax.nn.log_softmax(_matmul(z_BD, keys_KD.T) + bias_K)
        p_BK = jnp.exp(logp_BK)
        entropy -= jnp.sum(valid_B * jnp.sum(p_BK * logp_BK, axis=1))
        return (entropy, total_K + valid_B @ p_BK), None

    zero = (jnp.zeros(()), jnp.zeros(bias_K.shape))
    (entropy, total_K), _ = jax.lax.scan(add, zero, (z_SBD, valid_SB.astype(jnp.float32)))
    return entropy / z_ND.shape[0], total_K / z_ND.shape[0]


def _assignments_forward(z_ND, keys_KD, bias_K):
    return _assignments(z_ND, keys_KD, bias_K), (z_ND, keys_KD, bias_K)


def _assignments_backward(kept, cotangents):
    z_ND, keys_KD, bias_K = kept
    n = z_ND.shape[0]
    d_entropy, d_mean_K = cotangents
    (z_SBD,), valid_SB = _row_blocks(_soft_rows(bias_K.shape[0]), z_ND)

    def add(carry, block):
        d_keys_KD, d_bias_K = carry
        z_BD, valid_B = block
        logp_BK = jax.nn.log_softmax(_matmul(z_BD, keys_KD.T) + bias_K)
        # d sum_k p_k (d_mean_k - d_entropy log p_k), the softmax's Jacobian applied by hand.
        pull_BK = d_mean_K - d_entropy * logp_BK
        p_BK = jnp.exp(logp_BK)
        pull_BK -= jnp.sum(p_BK * pull_BK, axis=1, keepdims=True)
        d_logits_BK = p_BK * pull_BK * (valid_B[:, None] / n)
        carry = (d_keys_KD + _matmul(d_logits_BK.T, z_BD), d_bias_K + d_logits_BK.sum(0))
        return carry, _matmul(d_logits_BK, keys_KD)

    zero = (jnp.zeros_like(keys_KD), jnp.zeros_like(bias_K))
    (d_keys_KD, d_bias_K), d_z_SBD = jax.lax.scan(add, zero, (z_SBD, valid_SB.astype(jnp.float32)))
    return _unblocked(d_z_SBD, n), d_keys_KD, d_bias_K


_assignments.defvjp(_assignments_forward, _assignments_backward)


def assignments(
    z_ND: jax.Array, keys_KD: jax.Array, bias_K: jax.Array, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array]:
    """How surely each latent goes to one code, and how much of the batch each code gets.

    p_nk = softmax_k(z_n . keys_k + bias_k). The two entropies of MaskGIT's and LFQ's losses (Yu et
    al. 2023, eq. 4) are the first result and the entropy of the second.

    Args:
      z_ND: float32 [N, D], this device's latents.
      keys_KD, bias_K: float32; see `distance_logits`.
      axis_name: mapped axis, or None.

    Returns:
      mean_n H(p_n) in nats, float32 []; mean_n p_n, float32 [K], summing to 1; over all devices.
    """
    return pmean(_assignments(z_ND, keys_KD, bias_K), axis_name)


def _gumbel(keys_B: jax.Array | None, k: int) -> jax.Array | float:
    if keys_B is None:
        return 0.0
    return jax.vmap(lambda key: jax.random.gumbel(key, (k,)))(keys_B)


def _noise_blocks(rows: int, row_keys_N: jax.Array | None) -> jax.Array | None:
    if row_keys_N is None:
        return None
    (data,), _ = _row_blocks(rows, jax.random.key_data(row_keys_N))
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(row_keys_N))


@jax.custom_vjp
def _soft_lookup(z_ND, keys_KD, bias_K, values_KE, row_keys_N, temperature):
    n, k = z_ND.shape[0], bias_K.shape[0]
    rows = _soft_rows(k)
    (z_SBD,), _ = _row_blocks(rows, z_ND)

    def choose(block):
        z_BD, noise_B = block
        return _first_of_best(_matmul(z_BD, keys_KD.T) + bias_K + _gumbel(noise_B, k))[1]

    codes_N = _unblocked(jax.lax.map(choose, (z_SBD, _noise_blocks(rows, row_keys_N))), n)
    return values_KE[codes_N], codes_N


def _soft_lookup_forward(z_ND, keys_KD, bias_K, values_KE, row_keys_N, temperature):
    out = _soft_lookup(z_ND, keys_KD, bias_K, values_KE, row_keys_N, temperature)
    return out, (z_ND, keys_KD, bias_K, values_KE, row_keys_N, temperature, out[1])


def _soft_lookup_backward(kept, cotangents):
    z_ND, keys_KD, bias_K, values_KE, row_keys_N, temperature, codes_N = kept
    d_values_NE, _ = cotangents
    n, k = z_ND.shape[0], bias_K.shape[0]
    rows = _soft_rows(k)
    (z_SBD, d_SBE), _ = _row_blocks(rows, z_ND, d_values_NE)  # rows filled in have no cotangent

    def add(carry, block):
        d_keys_KD, d_bias_K = carry
        z_BD, d_BE, noise_B = block
        logits_BK = _matmul(z_BD, keys_KD.T) + bias_K + _gumbel(noise_B, k)
        p_BK = jax.nn.softmax(logits_BK / temperature)
        pull_BK = _matmul(d_BE, values_KE.T)
        pull_BK -= jnp.sum(p_BK * pull_BK, axis=1, keepdims=True)
        d_logits_BK = p_BK * pull_BK / temperature
        carry = (d_keys_KD + _matmul(d_logits_BK.T, z_BD), d_bias_K + d_logits_BK.sum(0))
        return carry, _matmul(d_logits_BK, keys_KD)

    zero = (jnp.zeros_like(keys_KD), jnp.zeros_like(bias_K))
    blocks = (z_SBD, d_SBE, _noise_blocks(rows, row_keys_N))
    (d_keys_KD, d_bias_K), d_z_SBD = jax.lax.scan(add, zero, blocks)
    d_z_ND = _unblocked(d_z_SBD, n)
    # The value is the hard choice's, so the entries' own gradient is the choice's too.
    d_values_KE = jnp.zeros_like(values_KE).at[codes_N].add(d_values_NE)
    return d_z_ND, d_keys_KD, d_bias_K, d_values_KE, None, jnp.zeros_like(temperature)


_soft_lookup.defvjp(_soft_lookup_forward, _soft_lookup_backward)


def soft_lookup(
    z_ND: jax.Array,
    keys_KD: jax.Array,
    bias_K: jax.Array,
    values_KE: jax.Array,
    row_keys_N: jax.Array | None = None,
    temperature: float | jax.Array = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """A hard choice with the gradient of the soft one: y = onehot(argmax l) + p - stop_gradient(p).

    With logits l_nk = z_n . keys_k + bias_k + g_nk, p = softmax(l / temperature) and z_q = y @ values
    this is straight-through Gumbel-softmax (Jang et al. 2017, sec. 2.2) where g is Gumbel noise, and
    index backpropagation (Shi et al. 2024, eq. 5) where there is none and keys are values.

    Args:
      z_ND: float32 [N, D].
      keys_KD, bias_K, values_KE: float32, what scores a code and what stands for it.
      row_keys_N: a PRNG key for each row's noise, or None for no noise.
      temperature: of the softmax in the gradient; without gradient itself.

    Returns:
      float32 [N, E], rows of `values_KE`; int32 [N], which.
    """
    return _soft_lookup(
        z_ND, keys_KD, bias_K, values_KE, row_keys_N, jnp.asarray(temperature, jnp.float32)
    )


def row_keys(key: jax.Array | None, rows: int, axis_name: str | None = None) -> jax.Array | None:
    """A PRNG key for each row of this device, the same however many devices share the batch."""
    if key is None:
        return None
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * rows
    return jax.vmap(partial(jax.random.fold_in, key))(first + jnp.arange(rows))


# --- binary codes ---------------------------------------------------------------------------------


def _halves_log_p(logits_NG: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log p of every code of the lower and of the upper half of the bits."""

    def half(logits_Nh):
        size = logits_Nh.shape[1]
        bits_Ch = (jnp.arange(2**size)[:, None] >> jnp.arange(size)) & 1
        bits_hC = bits_Ch.T.astype(jnp.float32)
        on, off = jax.nn.log_sigmoid(logits_Nh), jax.nn.log_sigmoid(-logits_Nh)
        return _matmul(on, bits_hC) + _matmul(off, 1 - bits_hC)

    middle = logits_NG.shape[1] // 2
    return half(logits_NG[:, :middle]), half(logits_NG[:, middle:])


def binary_entropies(
    logits_ND: jax.Array, group: int = 0, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array]:
    """The two entropies of codes of D independent bits: E[H(p(c|z))] and H(E[p(c|z)]), in nats.

    A latent's own bits are independent, so its entropy is the sum of theirs (Yu et al. 2023, eq. 4).
    The average over latents is not a product any more; but the 2^D probabilities of a latent are the
    outer product of those of its lower and its upper half, so their sum over latents is a matrix
    product of [N, 2^(D/2)] with [N, 2^(D/2)], taken in blocks, and no [N, 2^D] array exists.

    Args:
      logits_ND: float32 [N, D], log-odds of each bit.
      group: how many bits are taken together in H(E[p]); groups count as independent of each other
        (Zhao et al. 2024, sec. 3.3, for 1). 0 takes all, and is exact.
      axis_name: mapped axis, or None.

    Returns:
      float32 [] and float32 [], over all devices.
    """
    n, bits = logits_ND.shape
    p_ND = jax.nn.sigmoid(logits_ND)
    of_each = p_ND * jax.nn.log_sigmoid(logits_ND) + (1 - p_ND) * jax.nn.log_sigmoid(-logits_ND)
    per_latent = -jnp.sum(of_each) / n

    if group == 1:
        mean_D2 = pmean(jnp.stack([p_ND, 1 - p_ND], axis=-1).mean(0), axis_name)
        return pmean(per_latent, axis_name), losses.entropy(mean_D2).sum()

    @jax.checkpoint
    def block_sum(block):
        logits_BG, valid_B = block
        lower, upper = _halves_log_p(logits_BG)
        return _matmul((jnp.exp(lower) * valid_B[:, None]).T, jnp.exp(upper))

    average = jnp.zeros(())
    group = group or bits
    for start in range(0, bits, group):
        logits_NG = logits_ND[:, start : start + group]
        wide = 2 ** (logits_NG.shape[1] - logits_NG.shape[1] // 2)
        (logits_SBG,), valid_SB = _row_blocks(_soft_rows(wide), logits_NG)
        shape = jax.eval_shape(block_sum, (logits_SBG[0], valid_SB[0].astype(jnp.float32)))
        total, _ = jax.lax.scan(
            lambda total, block: (total + block_sum(block), None),
            jnp.zeros(shape.shape),
            (logits_SBG, valid_SB.astype(jnp.float32)),
        )
        average += losses.entropy(pmean(total / n, axis_name).reshape(-1))
    return pmean(per_latent, axis_name), average


# --- codebooks ------------------------------------------------------------------------------------


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
    unit: bool = False,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Lloyd's k-means over the latents of all devices, started from sampled latents.

    A cluster that loses all its members starts again at a random latent.

    Args:
      key: PRNG key, the same on every device.
      z_ND: float [N, D], this device's latents.
      num_codes: K.
      iterations: how many rounds of assign and average; with 0 the sampled latents are the result,
        each with an equal count.
      unit: latents and centroids have length 1 (spherical k-means).
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
        means = normalise(means) if unit else means
        return jnp.where(counts[:, None] > 0, means, fresh), counts

    equal = psum(jnp.full((num_codes,), z_ND.shape[0] / num_codes, jnp.float32), axis_name)
    return jax.lax.fori_loop(0, iterations, round_, (centroids, equal))


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


def normalise(x: jax.Array) -> jax.Array:
    """Vectors of length 1 along the last axis (a zero vector stays zero)."""
    # Under the root, so that the gradient at 0 is finite.
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, 1e-12))


def orthogonality(codebook_KD: jax.Array) -> jax.Array:
    """How far the entries' directions are from orthogonal: |C C'|^2 / K^2 - 1 / K (Shin et al.
    2021, eq. 2), C the entries at length 1.

    The squared norm of C C' [K, K] is that of C' C [D, D], which is all that is built.

    Args:
      codebook_KD: float32 [K, D].

    Returns:
      float32 [].
    """
    k = codebook_KD.shape[0]
    c_KD = normalise(codebook_KD)
    return jnp.sum(jnp.square(_matmul(c_KD.T, c_KD))) / k**2 - 1 / k


def variance(z_ND: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Variance of each latent dimension over the rows of all devices: float [N, D] -> [D]."""
    mean_D = pmean(z_ND.mean(0), axis_name)
    return pmean(jnp.square(z_ND - mean_D).mean(0), axis_name)

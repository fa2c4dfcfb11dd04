"""Soft assignments of latents to codes, soft lookups and entropies of codes, as pure functions.

The logits of latent n are logits_nk = z_n . keys_k + bias_k, and its soft assignment is their
softmax over the K codes. No function holds a large [N, K] array. Latents are processed in blocks of
rows, and the backward pass computes each block again.

Array names end with one letter per axis: N latents, D dimensions, K codes, E dimensions of a value,
S blocks, B rows of a block, G bits of a group.
"""

import jax
import jax.numpy as jnp

from vq_jax import losses
from vq_jax.collectives import pmean
from vq_jax.quantizers import blockwise
from vq_jax.quantizers.blockwise import matmul, max_and_argmax, merge_rows, split_rows


def distance_logits(
    codebook_KD: jax.Array, temperature: float | jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Computes the keys and the bias of the logits -|z - e_k|^2 / temperature.

    The logits leave out |z|^2 / temperature, which is the same for every code and has no effect on
    a softmax.

    Args:
      codebook_KD: float [K, D], the entries e.
      temperature: softmax temperature, > 0.

    Returns:
      Keys, float32 [K, D], and bias, float32 [K].
    """
    codebook_KD = codebook_KD.astype(jnp.float32)
    norm_K = jnp.sum(jnp.square(codebook_KD), axis=1)
    return 2.0 * codebook_KD / temperature, -norm_K / temperature


def _rows_per_block(k: int) -> int:
    """Returns the number of rows whose logits of `k` codes are held at a time."""
    return max(1, 4 * blockwise.MAX_SCORES // k)


# --- statistics of the assignments ----------------------------------------------------------------


@jax.custom_vjp
def _assignment_statistics(z_ND, keys_KD, bias_K):
    """Computes `assignment_statistics` on this device."""
    (z_SBD,), valid_SB = split_rows(_rows_per_block(bias_K.shape[0]), z_ND)

    def add_block(carry, block):
        entropy, total_K = carry
        z_BD, valid_B = block
        logp_BK = jax.nn.log_softmax(matmul(z_BD, keys_KD.T) + bias_K)
        p_BK = jnp.exp(logp_BK)
        entropy -= jnp.sum(valid_B * jnp.sum(p_BK * logp_BK, axis=1))
        return (entropy, total_K + valid_B @ p_BK), None

    zero = (jnp.zeros(()), jnp.zeros(bias_K.shape))
    (entropy, total_K), _ = jax.lax.scan(add_block, zero, (z_SBD, valid_SB.astype(jnp.float32)))
    return entropy / z_ND.shape[0], total_K / z_ND.shape[0]


def _assignment_statistics_forward(z_ND, keys_KD, bias_K):
    return _assignment_statistics(z_ND, keys_KD, bias_K), (z_ND, keys_KD, bias_K)


def _assignment_statistics_backward(residuals, cotangents):
    z_ND, keys_KD, bias_K = residuals
    n = z_ND.shape[0]
    d_entropy, d_mean_K = cotangents
    (z_SBD,), valid_SB = split_rows(_rows_per_block(bias_K.shape[0]), z_ND)

    def add_block(carry, block):
        d_keys_KD, d_bias_K = carry
        z_BD, valid_B = block
        logp_BK = jax.nn.log_softmax(matmul(z_BD, keys_KD.T) + bias_K)
        # The gradient of sum_k p_k (d_mean_k - d_entropy log p_k), through the softmax's Jacobian.
        d_p_BK = d_mean_K - d_entropy * logp_BK
        p_BK = jnp.exp(logp_BK)
        d_p_BK -= jnp.sum(p_BK * d_p_BK, axis=1, keepdims=True)
        d_logits_BK = p_BK * d_p_BK * (valid_B[:, None] / n)
        carry = (d_keys_KD + matmul(d_logits_BK.T, z_BD), d_bias_K + d_logits_BK.sum(0))
        return carry, matmul(d_logits_BK, keys_KD)

    zero = (jnp.zeros_like(keys_KD), jnp.zeros_like(bias_K))
    (d_keys_KD, d_bias_K), d_z_SBD = jax.lax.scan(
        add_block, zero, (z_SBD, valid_SB.astype(jnp.float32))
    )
    return merge_rows(d_z_SBD, n), d_keys_KD, d_bias_K


_assignment_statistics.defvjp(_assignment_statistics_forward, _assignment_statistics_backward)


def assignment_statistics(
    z_ND: jax.Array, keys_KD: jax.Array, bias_K: jax.Array, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array]:
    """Computes the mean entropy and the mean of the soft assignments, over all devices.

    The soft assignment of latent n is p_nk = softmax_k(z_n . keys_k + bias_k). The losses of
    MaskGIT and LFQ (Yu et al. 2023, eq. 4) use two entropies: the first result, and the entropy of
    the second result.

    Args:
      z_ND: float32 [N, D], the latents of this device.
      keys_KD: float32 [K, D]; see `distance_logits`.
      bias_K: float32 [K].
      axis_name: mapped axis, or None.

    Returns:
      mean_n H(p_n) in nats, float32 [], and mean_n p_n, float32 [K], which sums to 1.
    """
    return pmean(_assignment_statistics(z_ND, keys_KD, bias_K), axis_name)


# --- soft lookup ----------------------------------------------------------------------------------


def _gumbel_noise(keys_B: jax.Array | None, k: int) -> jax.Array | float:
    """Draws Gumbel noise [B, k], or returns 0 if there are no keys."""
    if keys_B is None:
        return 0.0
    return jax.vmap(lambda key: jax.random.gumbel(key, (k,)))(keys_B)


def _split_keys(rows: int, row_keys_N: jax.Array | None) -> jax.Array | None:
    """Applies `split_rows` to PRNG keys."""
    if row_keys_N is None:
        return None
    (data,), _ = split_rows(rows, jax.random.key_data(row_keys_N))
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(row_keys_N))


@jax.custom_vjp
def _soft_lookup(z_ND, keys_KD, bias_K, values_KE, row_keys_N, temperature):
    n, k = z_ND.shape[0], bias_K.shape[0]
    rows = _rows_per_block(k)
    (z_SBD,), _ = split_rows(rows, z_ND)

    def choose(block):
        z_BD, keys_B = block
        return max_and_argmax(matmul(z_BD, keys_KD.T) + bias_K + _gumbel_noise(keys_B, k))[1]

    codes_N = merge_rows(jax.lax.map(choose, (z_SBD, _split_keys(rows, row_keys_N))), n)
    return values_KE[codes_N], codes_N


def _soft_lookup_forward(z_ND, keys_KD, bias_K, values_KE, row_keys_N, temperature):
    out = _soft_lookup(z_ND, keys_KD, bias_K, values_KE, row_keys_N, temperature)
    return out, (z_ND, keys_KD, bias_K, values_KE, row_keys_N, temperature, out[1])


def _soft_lookup_backward(residuals, cotangents):
    z_ND, keys_KD, bias_K, values_KE, row_keys_N, temperature, codes_N = residuals
    d_values_NE, _ = cotangents
    n, k = z_ND.shape[0], bias_K.shape[0]
    rows = _rows_per_block(k)
    # Padding rows need no mask, because their cotangents are zero.
    (z_SBD, d_SBE), _ = split_rows(rows, z_ND, d_values_NE)

    def add_block(carry, block):
        d_keys_KD, d_bias_K = carry
        z_BD, d_BE, keys_B = block
        logits_BK = matmul(z_BD, keys_KD.T) + bias_K + _gumbel_noise(keys_B, k)
        p_BK = jax.nn.softmax(logits_BK / temperature)
        d_p_BK = matmul(d_BE, values_KE.T)
        d_p_BK -= jnp.sum(p_BK * d_p_BK, axis=1, keepdims=True)
        d_logits_BK = p_BK * d_p_BK / temperature
        carry = (d_keys_KD + matmul(d_logits_BK.T, z_BD), d_bias_K + d_logits_BK.sum(0))
        return carry, matmul(d_logits_BK, keys_KD)

    zero = (jnp.zeros_like(keys_KD), jnp.zeros_like(bias_K))
    blocks = (z_SBD, d_SBE, _split_keys(rows, row_keys_N))
    (d_keys_KD, d_bias_K), d_z_SBD = jax.lax.scan(add_block, zero, blocks)
    d_z_ND = merge_rows(d_z_SBD, n)
    # The output is the hard choice's value, so only the chosen values receive a gradient.
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
    """Looks up the most likely code, with the gradient of the soft assignment.

    The logits are l_nk = z_n . keys_k + bias_k + g_nk. The result is z_q = y @ values with
    p = softmax(l / temperature) and y = onehot(argmax l) + p - stop_gradient(p).

    With Gumbel noise g this is straight-through Gumbel-softmax (Jang et al. 2017, sec. 2.2). With
    g = 0 and keys equal to values it is index backpropagation (Shi et al. 2024, eq. 5).

    Args:
      z_ND: float32 [N, D] latents.
      keys_KD: float32 [K, D], which score the codes.
      bias_K: float32 [K].
      values_KE: float32 [K, E], the outputs of the codes.
      row_keys_N: PRNG keys [N] for the noise of each row, or None for no noise.
      temperature: softmax temperature in the gradient. It receives no gradient itself.

    Returns:
      z_q, float32 [N, E], which are rows of `values_KE`, and the chosen codes, int32 [N].
    """
    return _soft_lookup(
        z_ND, keys_KD, bias_K, values_KE, row_keys_N, jnp.asarray(temperature, jnp.float32)
    )


# --- binary codes ---------------------------------------------------------------------------------


def _half_log_probabilities(logits_NG: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes log p of every code of the lower half of the bits, and of the upper half.

    Args:
      logits_NG: float32 [N, G], log-odds of each bit.

    Returns:
      float32 [N, 2^(G // 2)] and float32 [N, 2^(G - G // 2)].
    """

    def log_probabilities(logits_Nh):
        size = logits_Nh.shape[1]
        bits_Ch = (jnp.arange(2**size)[:, None] >> jnp.arange(size)) & 1
        bits_hC = bits_Ch.T.astype(jnp.float32)
        on, off = jax.nn.log_sigmoid(logits_Nh), jax.nn.log_sigmoid(-logits_Nh)
        return matmul(on, bits_hC) + matmul(off, 1 - bits_hC)

    middle = logits_NG.shape[1] // 2
    return log_probabilities(logits_NG[:, :middle]), log_probabilities(logits_NG[:, middle:])


def binary_entropies(
    logits_ND: jax.Array, group: int = 0, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array]:
    """Computes E[H(p(c|z))] and H(E[p(c|z)]) in nats, for codes c of D independent bits.

    The bits of one latent are independent, so its entropy is the sum of their entropies (Yu et al.
    2023, eq. 4). The average of p over latents is not a product of bits. However, the 2^D
    probabilities of one latent are the outer product of those of its lower and of its upper half of
    bits. Their sum over latents is therefore a matrix product of [N, 2^(D/2)] with [N, 2^(D/2)]. It
    is computed in blocks of latents, and no [N, 2^D] array exists.

    Args:
      logits_ND: float32 [N, D], log-odds of each bit.
      group: number of bits per group in H(E[p]). Groups count as independent of each other (Zhao et
        al. 2024, sec. 3.3, uses 1). With 0 all bits form one group, and the result is exact.
      axis_name: mapped axis, or None.

    Returns:
      float32 [] and float32 [], over all devices.
    """
    n, bits = logits_ND.shape
    p_ND = jax.nn.sigmoid(logits_ND)
    plogp_ND = p_ND * jax.nn.log_sigmoid(logits_ND) + (1 - p_ND) * jax.nn.log_sigmoid(-logits_ND)
    mean_entropy = -jnp.sum(plogp_ND) / n

    if group == 1:
        mean_D2 = pmean(jnp.stack([p_ND, 1 - p_ND], axis=-1).mean(0), axis_name)
        return pmean(mean_entropy, axis_name), losses.entropy(mean_D2).sum()

    @jax.checkpoint
    def sum_block(block):
        """Sums p over the latents of a block: [codes of lower half, codes of upper half]."""
        logits_BG, valid_B = block
        lower, upper = _half_log_probabilities(logits_BG)
        return matmul((jnp.exp(lower) * valid_B[:, None]).T, jnp.exp(upper))

    entropy_of_mean = jnp.zeros(())
    group = group or bits
    for start in range(0, bits, group):
        logits_NG = logits_ND[:, start : start + group]
        upper_codes = 2 ** (logits_NG.shape[1] - logits_NG.shape[1] // 2)
        (logits_SBG,), valid_SB = split_rows(_rows_per_block(upper_codes), logits_NG)
        shape = jax.eval_shape(sum_block, (logits_SBG[0], valid_SB[0].astype(jnp.float32)))
        total, _ = jax.lax.scan(
            lambda total, block: (total + sum_block(block), None),
            jnp.zeros(shape.shape),
            (logits_SBG, valid_SB.astype(jnp.float32)),
        )
        entropy_of_mean += losses.entropy(pmean(total / n, axis_name).reshape(-1))
    return pmean(mean_entropy, axis_name), entropy_of_mean

"""Image and codebook measures as pure functions. Images are float32 [B, H, W, C] in [-1, 1]."""

import math

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np


def psnr(a: jax.Array, b: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio of each image in dB, float32 [B].

    10 log10(peak^2 / MSE) with the range of [-1, 1], 2, as the peak.
    """
    mse = jnp.mean(jnp.square(a - b), axis=(1, 2, 3))
    return 10.0 * jnp.log10(4.0 / jnp.maximum(mse, 1e-10))


def ssim(a: jax.Array, b: jax.Array) -> jax.Array:
    """Structural similarity of each image, float32 [B] (Wang et al. 2004; 11-tap Gaussian, s 1.5).

    Images smaller than the window get the largest odd window that fits.
    """
    window = min(11, *(side - (side % 2 == 0) for side in a.shape[1:3]))
    return dm_pix.ssim((a + 1) / 2, (b + 1) / 2, max_val=1.0, filter_size=window)


def l1(a: jax.Array, b: jax.Array) -> jax.Array:
    """Mean absolute error of each image on the [-1, 1] scale, float32 [B]."""
    return jnp.mean(jnp.abs(a - b), axis=(1, 2, 3))


def code_counts(codes: jax.Array, num_codes: int) -> jax.Array:
    """How often each code occurs, float32 [num_codes], for int codes of any shape."""
    return jnp.zeros((num_codes,), jnp.float32).at[codes.reshape(-1)].add(1.0)


def perplexity(counts: jax.Array) -> jax.Array:
    """Exponential of the entropy (nats) of code counts [..., K]: how many are in effective use."""
    p = counts / jnp.maximum(counts.sum(-1, keepdims=True), 1.0)
    return jnp.exp(-jnp.sum(p * jnp.log(jnp.maximum(p, 1e-10)), axis=-1))


def usage(counts: jax.Array) -> jax.Array:
    """Share of the codes that occur at all, in [0, 1], from counts [..., K]."""
    return jnp.mean((counts > 0).astype(jnp.float32), axis=-1)


def bits_per_pixel(num_codes: int, codes_per_image: int, pixels: int) -> float:
    """Bits of an image's codes at fixed width, log2(num_codes) each, over its pixels."""
    return codes_per_image * math.log2(num_codes) / pixels


# --- sets of images, by their features, in float64 ------------------------------------------------


def frechet_distance(a_NF: np.ndarray, b_MF: np.ndarray) -> float:
    """Frechet distance of two sets of features, each taken for a Gaussian (Heusel et al. 2017, eq. 6).

    The trace of the root of the covariances' product is the nuclear norm of the centred sets'
    product, so that few samples of many features need no covariance and no root of a singular one.

    Args:
      a_NF, b_MF: float [N, F] and [M, F], at least two rows each.

    Returns:
      |mean_a - mean_b|^2 + tr(C_a) + tr(C_b) - 2 tr((C_a C_b)^(1/2)).
    """
    a, b = np.asarray(a_NF, np.float64), np.asarray(b_MF, np.float64)
    mean_a, mean_b = a.mean(0), b.mean(0)
    a = (a - mean_a) / math.sqrt(len(a) - 1)
    b = (b - mean_b) / math.sqrt(len(b) - 1)
    shared = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    spread = np.square(a).sum() + np.square(b).sum() - 2.0 * shared
    return float(np.square(mean_a - mean_b).sum() + spread)


def distances(a_NF: np.ndarray, b_MF: np.ndarray) -> np.ndarray:
    """Euclidean distances float64 [N, M] of features [N, F] and [M, F]."""
    a, b = np.asarray(a_NF, np.float64), np.asarray(b_MF, np.float64)
    squares = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2.0 * a @ b.T
    return np.sqrt(np.maximum(squares, 0.0))


def precision_recall(
    real_NF: np.ndarray, fake_MF: np.ndarray, neighbours: int = 3
) -> tuple[float, float]:
    """Share of fakes among the reals, and of reals among the fakes (Kynkaanniemi et al. 2019, eq. 2-3).

    A set's manifold is the balls around its points that reach their k-th nearest neighbour.

    Args:
      real_NF, fake_MF: features, more than `neighbours` rows each.
      neighbours: k.
    """

    def covered(points, by):
        reach = np.sort(distances(by, by), axis=1)[:, neighbours]  # the nearest is itself
        return float((distances(points, by) <= reach).any(axis=1).mean())

    return covered(fake_MF, real_NF), covered(real_NF, fake_MF)

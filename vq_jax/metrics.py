"""Metrics of images, vectors, codes and sets of features, as pure functions.

Images are float32 [B, H, W, C] in [-1, 1].
"""

import dataclasses
import math

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np


def psnr(a: jax.Array, b: jax.Array) -> jax.Array:
    """Computes the peak signal-to-noise ratio of each image in dB, float32 [B].

    It is 10 log10(peak^2 / MSE), where the peak is 2, the size of the range [-1, 1].
    """
    mse = jnp.mean(jnp.square(a - b), axis=(1, 2, 3))
    return 10.0 * jnp.log10(4.0 / jnp.maximum(mse, 1e-10))


def ssim(a: jax.Array, b: jax.Array) -> jax.Array:
    """Computes the structural similarity of each image, float32 [B] (Wang et al. 2004).

    The window is a Gaussian of 11 taps with standard deviation 1.5. For smaller images, it has the
    largest odd number of taps that fits.
    """
    window = min(11, *(side - (side % 2 == 0) for side in a.shape[1:3]))
    return dm_pix.ssim((a + 1) / 2, (b + 1) / 2, max_val=1.0, filter_size=window)


# Weights of the five scales, finest first (Wang et al. 2003, table 1).
_MS_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_SIDE = 11 * 2 ** (len(_MS_WEIGHTS) - 1)  # smallest side: one window at the coarsest scale


def ms_ssim(a: jax.Array, b: jax.Array) -> jax.Array:
    """Computes the multi-scale structural similarity of each image, float32 [B].

    See Wang et al. 2003, eq. 7. The window is that of `ssim`, without padding. Each scale halves
    the one before by 2x2 means; an odd side loses its last row. Negative terms count as 0.

    Args:
      a, b: images with sides of at least `MS_SSIM_SIDE` pixels.
    """
    if min(a.shape[1:3]) < MS_SSIM_SIDE:
        raise ValueError(f"MS-SSIM needs sides of at least {MS_SSIM_SIDE}, not {a.shape[1:3]}")
    a, b = (a + 1) / 2, (b + 1) / 2
    product_BC = jnp.ones((a.shape[0], a.shape[-1]), jnp.float32)
    for scale, weight in enumerate(_MS_WEIGHTS):
        if scale:
            a, b = _halved(a), _halved(b)
        similarity, contrast = _ssim_terms(a, b)
        term = similarity if scale == len(_MS_WEIGHTS) - 1 else contrast
        product_BC *= jnp.maximum(term, 0.0) ** weight
    return product_BC.mean(-1)


def _halved(x: jax.Array) -> jax.Array:
    b, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c)
    return x.mean((2, 4))


def _ssim_terms(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes SSIM and its contrast-structure term, averaged over windows.

    Args:
      a, b: float32 [B, H, W, C] in [0, 1].

    Returns:
      two arrays [B, C].
    """
    taps = np.exp(-0.5 * np.square((np.arange(11) - 5) / 1.5))
    taps /= taps.sum()

    def blur(x):
        for axis in (1, 2):
            size = x.shape[axis] - 10
            parts = (jax.lax.slice_in_dim(x, i, i + size, axis=axis) for i in range(11))
            x = sum(float(tap) * part for tap, part in zip(taps, parts, strict=True))
        return x

    c1, c2 = 0.01**2, 0.03**2
    mean_a, mean_b = blur(a), blur(b)
    variance = blur(a * a) - mean_a**2 + blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    contrast = (2 * covariance + c2) / (variance + c2)
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return (luminance * contrast).mean((1, 2)), contrast.mean((1, 2))


def l1(a: jax.Array, b: jax.Array) -> jax.Array:
    """Computes the mean absolute error of each image, float32 [B]."""
    return jnp.mean(jnp.abs(a - b), axis=(1, 2, 3))


def cosine_similarity(a: jax.Array, b: jax.Array) -> jax.Array:
    """Computes the cosine similarity of vectors [..., D], float32 [...]; 0 for a zero vector."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    # Squared lengths are bounded inside the root, where its gradient would be infinite at 0.
    squares = jnp.sum(jnp.square(a), axis=-1) * jnp.sum(jnp.square(b), axis=-1)
    return jnp.sum(a * b, axis=-1) * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


def code_counts(codes: jax.Array, num_codes: int) -> jax.Array:
    """Counts how often each code occurs, float32 [num_codes], in int codes of any shape."""
    return jnp.zeros((num_codes,), jnp.float32).at[codes.reshape(-1)].add(1.0)


def perplexity(counts: jax.Array) -> jax.Array:
    """Computes the perplexity [...] of code counts [..., K]: exp of their entropy in nats."""
    p = counts / jnp.maximum(counts.sum(-1, keepdims=True), 1.0)
    return jnp.exp(-jnp.sum(p * jnp.log(jnp.maximum(p, 1e-10)), axis=-1))


def usage(counts: jax.Array) -> jax.Array:
    """Computes the share of codes that occur, in [0, 1], [...] from counts [..., K]."""
    return jnp.mean((counts > 0).astype(jnp.float32), axis=-1)


def collisions(codes_NQ: np.ndarray) -> tuple[float, int]:
    """Counts rows of codes int [N, Q] that are equal.

    Returns:
      the share of the rows that no other row equals; the largest number of equal rows.
    """
    counts = np.unique(codes_NQ, axis=0, return_counts=True)[1]
    return float((counts == 1).sum() / len(codes_NQ)), int(counts.max())


# Rows of a distance matrix that are computed at a time.
_ROWS = 4096

# --- sets of images, compared by their features, in float64 ---------------------------------------


def frechet_distance(a_NF: np.ndarray, b_MF: np.ndarray) -> float:
    """Computes the Frechet distance of two sets of features, modelled as Gaussians.

    See Heusel et al. 2017, eq. 6. The trace of the square root of the product of the covariances is
    computed as the nuclear norm of the product of the centred sets. For few samples of many
    features, this needs neither the covariances nor the root of a singular matrix.

    Args:
      a_NF, b_MF: float [N, F] and [M, F], with at least two rows each.

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


@dataclasses.dataclass
class Statistics:
    """Accumulates the mean and covariance of batches of features, in float64.

    Batches are combined by the parallel form of Welford's algorithm (Chan et al. 1979). It avoids
    the cancellation of a difference of sums, and does not store all features.

    Attributes:
      count: number of rows.
      mean: [F].
      scatter: [F, F], the sum of the outer products of the rows, centred at the mean.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def empty(cls, size: int) -> "Statistics":
        """Returns the statistics of no rows, for `size` features."""
        return cls(0, np.zeros(size), np.zeros((size, size)))

    def add(self, rows_NF: np.ndarray) -> None:
        """Adds a batch of rows [N, F]."""
        rows = np.asarray(rows_NF, np.float64)
        if not len(rows):
            return
        mean, count = rows.mean(0), self.count + len(rows)
        rows = rows - mean
        shift = mean - self.mean
        self.scatter += rows.T @ rows
        self.scatter += np.outer(shift, shift) * (self.count * len(rows_NF) / count)
        self.mean = self.mean + shift * (len(rows_NF) / count)
        self.count = count

    def covariance(self) -> np.ndarray:
        """Returns the unbiased covariance [F, F]."""
        return self.scatter / (self.count - 1)


def frechet_distance_of(a: Statistics, b: Statistics) -> float:
    """Computes `frechet_distance` from means and covariances.

    The trace of the square root of C_a C_b is the sum of the square roots of the eigenvalues of the
    symmetric matrix C_a^(1/2) C_b C_a^(1/2). These are real, and those that are negative by
    rounding count as 0. Nothing is added to the diagonals.
    """
    cov_a, cov_b = a.covariance(), b.covariance()
    values, vectors = np.linalg.eigh(cov_a)
    root_a = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    shared = np.linalg.eigvalsh(root_a @ cov_b @ root_a)
    spread = np.trace(cov_a) + np.trace(cov_b) - 2.0 * np.sqrt(np.maximum(shared, 0.0)).sum()
    return float(np.square(a.mean - b.mean).sum() + spread)


def inception_score(probabilities_NC: np.ndarray, split: int = 5000) -> float:
    """Computes the Inception score, averaged over parts of the images.

    The score is exp of the mean KL(p(class | image) | p(class)) (Salimans et al. 2016).

    Args:
      probabilities_NC: class probabilities of each image.
      split: number of consecutive images in a part; the last part may be smaller.
    """
    scores = []
    for start in range(0, len(probabilities_NC), split):
        p = np.asarray(probabilities_NC[start : start + split], np.float64)
        p = np.maximum(p, 1e-16)
        scores.append(math.exp(np.sum(p * (np.log(p) - np.log(p.mean(0))), axis=1).mean()))
    return float(np.mean(scores))


def distances(a_NF: np.ndarray, b_MF: np.ndarray) -> np.ndarray:
    """Computes the Euclidean distances float64 [N, M] of features [N, F] and [M, F]."""
    a, b = np.asarray(a_NF, np.float64), np.asarray(b_MF, np.float64)
    squares = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2.0 * a @ b.T
    return np.sqrt(np.maximum(squares, 0.0))


def precision_recall(
    real_NF: np.ndarray, fake_MF: np.ndarray, neighbours: int = 3
) -> tuple[float, float]:
    """Computes precision and recall of generated samples (Kynkaanniemi et al. 2019, eq. 2-3).

    The manifold of a set is the union of the balls around its points, each with the distance to the
    point's k-th nearest neighbour as radius.

    Args:
      real_NF, fake_MF: features, with more than `neighbours` rows each.
      neighbours: k.

    Returns:
      precision, the share of fake samples in the manifold of the real ones; recall, the share of
      real samples in the manifold of the fake ones.
    """

    def share_inside(points, manifold):
        # Index 0 of the sorted distances is the point itself.
        radii = np.concatenate(
            [
                np.partition(distances(manifold[i : i + _ROWS], manifold), neighbours)[
                    :, neighbours
                ]
                for i in range(0, len(manifold), _ROWS)
            ]
        )
        inside = [
            (distances(points[i : i + _ROWS], manifold) <= radii).any(axis=1)
            for i in range(0, len(points), _ROWS)
        ]
        return float(np.concatenate(inside).mean())

    return share_inside(fake_MF, real_NF), share_inside(real_NF, fake_MF)

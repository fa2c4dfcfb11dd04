"""Metrics against SciPy, scikit-image and their definitions."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg, signal, stats
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vq_jax import metrics
from vq_jax.data.images import fit, to_float


@pytest.fixture
def pair(rng):
    a = rng.uniform(-1, 1, size=(3, 32, 32, 3)).astype(np.float32)
    b = np.clip(a + 0.2 * rng.normal(size=a.shape), -1, 1).astype(np.float32)
    return a, b


def test_psnr_matches_scikit_image(pair):
    a, b = pair
    expected = [peak_signal_noise_ratio(x, y, data_range=2.0) for x, y in zip(a, b, strict=True)]
    chex.assert_trees_all_close(metrics.psnr(a, b), np.array(expected), rtol=1e-4)


def test_ssim_matches_scikit_image_away_from_the_border(pair):
    a, b = pair
    options = {"data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "channel_axis": -1}
    for x, y, value in zip(a, b, metrics.ssim(a, b), strict=True):
        _, full = structural_similarity(
            (x + 1) / 2, (y + 1) / 2, use_sample_covariance=False, full=True, **options
        )
        assert value == pytest.approx(full[5:-5, 5:-5].mean(), abs=2e-3)


def test_equal_images_have_perfect_scores(pair):
    a, _ = pair
    assert (np.asarray(metrics.psnr(a, a)) > 90).all()
    chex.assert_trees_all_close(metrics.ssim(a, a), jnp.ones(3), atol=1e-5)
    chex.assert_trees_all_equal(metrics.l1(a, a), jnp.zeros(3))


def test_ssim_accepts_images_smaller_than_its_window():
    x = jnp.zeros((1, 8, 8, 1))
    chex.assert_trees_all_close(metrics.ssim(x, x), jnp.ones(1), atol=1e-5)


def test_counts_usage_and_perplexity():
    counts = metrics.code_counts(jnp.array([[0, 1], [1, 3]]), 8)
    chex.assert_trees_all_equal(counts, jnp.array([1.0, 2, 0, 1, 0, 0, 0, 0]))
    assert metrics.usage(counts) == pytest.approx(3 / 8)
    assert metrics.perplexity(jnp.full((8,), 5.0)) == pytest.approx(8.0, rel=1e-5)
    assert metrics.perplexity(jnp.eye(8)[0]) == pytest.approx(1.0, rel=1e-5)


def test_frechet_distance_matches_the_formula_with_scipys_sqrtm(rng):
    a = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6))
    b = rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)) + 1.0
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(a.mean(0) - b.mean(0)).sum()
    expected += np.trace(covariances[0] + covariances[1] - 2 * root)
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert metrics.frechet_distance(a, a) == pytest.approx(0.0, abs=1e-8)
    # Fewer samples than features, shifted by 3 along one axis.
    few = rng.normal(size=(10, 40))
    assert metrics.frechet_distance(few, few + 3 * np.eye(40)[0]) == pytest.approx(9.0)


def test_precision_and_recall_distinguish_bad_from_missing_samples(rng):
    near, far = rng.normal(size=(200, 2)), rng.normal(size=(200, 2)) + 100
    both = np.concatenate([near, far])
    precision, recall = metrics.precision_recall(both, near + 0.01)
    assert precision > 0.95 and recall == pytest.approx(0.5, abs=0.05)
    precision, recall = metrics.precision_recall(near, both + 0.01)
    assert precision == pytest.approx(0.5, abs=0.05) and recall > 0.95


def test_distances_are_euclidean(rng):
    a, b = rng.normal(size=(4, 3)), rng.normal(size=(5, 3))
    expected = np.linalg.norm(a[:, None] - b[None], axis=-1)
    np.testing.assert_allclose(metrics.distances(a, b), expected, rtol=1e-9)


def reference_ms_ssim(a, b):
    """Computes MS-SSIM (Wang et al. 2003) of one channel, in float64 with SciPy's convolution."""
    taps = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    window = np.outer(taps, taps) / taps.sum() ** 2

    def blur(x):
        return signal.convolve2d(x, window, mode="valid")

    weights, product = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333), 1.0
    for scale, weight in enumerate(weights):
        if scale:
            h, w = (n // 2 * 2 for n in a.shape)
            a, b = (x[:h, :w].reshape(h // 2, 2, w // 2, 2).mean((1, 3)) for x in (a, b))
        mean_a, mean_b = blur(a), blur(b)
        variance = blur(a * a) - mean_a**2 + blur(b * b) - mean_b**2
        contrast = (2 * (blur(a * b) - mean_a * mean_b) + 0.0009) / (variance + 0.0009)
        luminance = (2 * mean_a * mean_b + 0.0001) / (mean_a**2 + mean_b**2 + 0.0001)
        last = scale == len(weights) - 1
        product *= max(0.0, (luminance * contrast if last else contrast).mean()) ** weight
    return product


def test_ms_ssim_matches_its_definition(rng):
    a = to_float(fit(data.astronaut(), 181, 181))[None]
    b = np.clip(a + 0.2 * rng.normal(size=a.shape), -1, 1).astype(np.float32)
    x, y = (np.asarray(i[0], np.float64) / 2 + 0.5 for i in (a, b))
    expected = np.mean([reference_ms_ssim(x[..., c], y[..., c]) for c in range(3)])
    assert float(metrics.ms_ssim(a, b)[0]) == pytest.approx(expected, abs=1e-5)
    assert float(metrics.ms_ssim(a, a)[0]) == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(ValueError, match="at least 176"):
        metrics.ms_ssim(a[:, :100], a[:, :100])


def test_ssim_terms_match_scikit_image(rng):
    """At the finest scale, the product of luminance and contrast is SSIM."""
    a = to_float(fit(data.astronaut(), 64, 64))[None] / 2 + 0.5
    b = np.clip(a + 0.1 * rng.normal(size=a.shape), 0, 1).astype(np.float32)
    _, full = structural_similarity(
        a[0], b[0], full=True, data_range=1.0, gaussian_weights=True, sigma=1.5, channel_axis=-1,
        use_sample_covariance=False,
    )  # fmt: skip
    similarity, _ = metrics._ssim_terms(a, b)
    np.testing.assert_allclose(similarity[0], full[5:-5, 5:-5].mean((0, 1)), atol=1e-4)


def statistics_of(rows, *cuts):
    """Adds rows in parts that begin at `cuts`."""
    statistics = metrics.Statistics.empty(rows.shape[1])
    for part in np.split(rows, cuts):
        statistics.add(part)
    return statistics


def test_statistics_accept_batches_of_any_size(rng):
    # Far from 0, a difference of sums of squares would have no correct digits in float32.
    rows = (rng.normal(size=(500, 7)) @ rng.normal(size=(7, 7)) + 1e4).astype(np.float32)
    statistics = statistics_of(rows, 1, 1, 17, 300)
    exact = rows.astype(np.float64)
    assert statistics.count == 500
    np.testing.assert_allclose(statistics.mean, exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance(), np.cov(exact, rowvar=False), rtol=1e-8)


def test_frechet_distance_of_statistics_matches_scipy(rng):
    a = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6))
    b = rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)) + 1.0
    distance = metrics.frechet_distance_of(statistics_of(a, 100), statistics_of(b, 30))
    root = linalg.sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() - 2 * np.trace(root)
    expected += np.trace(np.cov(a, rowvar=False)) + np.trace(np.cov(b, rowvar=False))
    assert distance == pytest.approx(expected, rel=1e-9)
    assert distance == pytest.approx(metrics.frechet_distance(a, b), rel=1e-9)


def test_frechet_distance_of_singular_covariances_is_correct(rng):
    few = rng.normal(size=(10, 40))
    shifted = few + 3 * np.eye(40)[0]
    distance = metrics.frechet_distance_of(statistics_of(few), statistics_of(shifted))
    assert distance == pytest.approx(9.0, abs=1e-4)
    constant = np.ones((10, 40))
    distance = metrics.frechet_distance_of(statistics_of(constant), statistics_of(few))
    assert distance == pytest.approx(metrics.frechet_distance(constant, few), rel=1e-6)


def test_inception_score_matches_its_definition():
    certain = np.eye(4)[np.arange(400) % 4]
    assert metrics.inception_score(certain) == pytest.approx(4.0)
    assert metrics.inception_score(np.full((400, 4), 0.25)) == pytest.approx(1.0)
    assert metrics.inception_score(np.concatenate([certain] * 3), split=400) == pytest.approx(4.0)
    p = np.array([[0.7, 0.3], [0.2, 0.8]])
    mean = p.mean(0)
    expected = np.exp(np.mean([stats.entropy(row, mean) for row in p]))
    assert metrics.inception_score(p) == pytest.approx(expected)


def test_precision_and_recall_do_not_depend_on_the_block_size(rng, monkeypatch):
    real, fake = rng.normal(size=(90, 3)), rng.normal(size=(70, 3)) + 0.5
    in_one_block = metrics.precision_recall(real, fake)
    monkeypatch.setattr(metrics, "_ROWS", 13)
    assert metrics.precision_recall(real, fake) == in_one_block


def test_collisions_count_equal_rows_only():
    codes = np.array([[0, 1], [0, 1], [0, 1], [2, 2], [3, 0], [0, 3], [0, 3], [9, 9]])
    assert metrics.collisions(codes) == (3 / 8, 3)
    assert metrics.collisions(np.array([[1], [2]])) == (1.0, 1)

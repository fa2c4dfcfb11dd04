import chex
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vq_jax import metrics


@pytest.fixture
def pair(rng):
    a = rng.uniform(-1, 1, size=(3, 32, 32, 3)).astype(np.float32)
    b = np.clip(a + 0.2 * rng.normal(size=a.shape), -1, 1).astype(np.float32)
    return a, b


def test_psnr_equals_scikit_image(pair):
    a, b = pair
    expected = [peak_signal_noise_ratio(x, y, data_range=2.0) for x, y in zip(a, b, strict=True)]
    chex.assert_trees_all_close(metrics.psnr(a, b), np.array(expected), rtol=1e-4)


def test_ssim_equals_scikit_image_away_from_the_border(pair):
    a, b = pair
    options = {"data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "channel_axis": -1}
    for x, y, value in zip(a, b, metrics.ssim(a, b), strict=True):
        _, full = structural_similarity(
            (x + 1) / 2, (y + 1) / 2, use_sample_covariance=False, full=True, **options
        )
        assert value == pytest.approx(full[5:-5, 5:-5].mean(), abs=2e-3)


def test_equal_images_are_perfect(pair):
    a, _ = pair
    assert (np.asarray(metrics.psnr(a, a)) > 90).all()
    chex.assert_trees_all_close(metrics.ssim(a, a), jnp.ones(3), atol=1e-5)
    chex.assert_trees_all_equal(metrics.l1(a, a), jnp.zeros(3))


def test_ssim_takes_images_smaller_than_its_window():
    x = jnp.zeros((1, 8, 8, 1))
    chex.assert_trees_all_close(metrics.ssim(x, x), jnp.ones(1), atol=1e-5)


def test_counts_usage_and_perplexity():
    counts = metrics.code_counts(jnp.array([[0, 1], [1, 3]]), 8)
    chex.assert_trees_all_equal(counts, jnp.array([1.0, 2, 0, 1, 0, 0, 0, 0]))
    assert metrics.usage(counts) == pytest.approx(3 / 8)
    assert metrics.perplexity(jnp.full((8,), 5.0)) == pytest.approx(8.0, rel=1e-5)
    assert metrics.perplexity(jnp.eye(8)[0]) == pytest.approx(1.0, rel=1e-5)


def test_bits_per_pixel():
    assert metrics.bits_per_pixel(512, 64, 32 * 32) == pytest.approx(0.5625)


def test_the_frechet_distance_is_the_one_of_two_gaussians(rng):
    a = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6))
    b = rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)) + 1.0
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(a.mean(0) - b.mean(0)).sum()
    expected += np.trace(covariances[0] + covariances[1] - 2 * root)
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert metrics.frechet_distance(a, a) == pytest.approx(0.0, abs=1e-8)
    # Of fewer samples than features, too: moved by 3 in one direction.
    few = rng.normal(size=(10, 40))
    assert metrics.frechet_distance(few, few + 3 * np.eye(40)[0]) == pytest.approx(9.0)


def test_precision_and_recall_tell_bad_samples_from_missing_ones(rng):
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

"""Patches and the discrete cosine transform."""

import chex
import jax
import numpy as np
import pytest
import scipy.fft

from vq_jax.models.transforms import cosine_basis, from_patches, to_patches


@pytest.mark.parametrize("shape", [(8, 12, 3), (2, 8, 4, 1), (2, 5, 4, 4, 3)])
def test_patches_invert(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    patches = to_patches(x, 4)
    chex.assert_shape(patches, (*shape[:-3], shape[-3] // 4, shape[-2] // 4, 16 * shape[-1]))
    chex.assert_trees_all_equal(from_patches(patches, 4), x)


def test_a_patch_is_a_square_of_pixels():
    x = np.arange(2 * 8 * 8 * 3).reshape(2, 8, 8, 3)
    patches = np.asarray(to_patches(x, 4))
    chex.assert_trees_all_equal(patches[1, 0, 1], x[1, :4, 4:].reshape(-1))


def test_the_basis_is_that_of_scipy():
    block = np.random.default_rng(0).normal(size=(4, 8, 8, 1))
    ours = np.sort(block.reshape(-1) @ cosine_basis((4, 8, 8), 1, 256))
    chex.assert_trees_all_close(
        ours, np.sort(scipy.fft.dctn(block, norm="ortho").ravel()), atol=1e-5
    )


@pytest.mark.parametrize(
    "sizes,channels,dim", [((8, 8), 3, 120), ((4, 4, 4), 3, 192), ((6,), 2, 12)]
)
def test_the_basis_is_orthonormal_and_begins_with_the_mean(sizes, channels, dim):
    basis = cosine_basis(sizes, channels, dim)
    chex.assert_shape(basis, (channels * np.prod(sizes), dim))
    chex.assert_trees_all_close(basis.T @ basis, np.eye(dim, dtype=np.float32), atol=1e-5)
    if channels == 3:
        chex.assert_trees_all_close(basis[:, 0], np.full(len(basis), len(basis) ** -0.5), atol=1e-5)


def test_more_frequencies_than_values_are_refused():
    with pytest.raises(ValueError, match="48 values has no 49 frequencies"):
        cosine_basis((4, 4), 3, 49)

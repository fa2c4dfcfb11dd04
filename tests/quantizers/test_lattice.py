"""The Leech lattice: its points, and the search among them."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vq_jax.quantizers import QUANTIZERS
from vq_jax.quantizers.lattice import golay_code

LEECH = QUANTIZERS["lattice"](lattice="leech")


def lookup(codes):
    return np.asarray(LEECH.apply({}, jnp.asarray(codes), method="lookup"))


def test_golay_code():
    words = golay_code()
    assert len(np.unique(words, axis=0)) == 4096
    weights, counts = np.unique(words.sum(1), return_counts=True)
    assert dict(zip(weights.tolist(), counts.tolist(), strict=True)) == {
        0: 1, 8: 759, 12: 2576, 16: 759, 24: 1,
    }  # fmt: skip


@pytest.fixture(scope="module")
def points():
    """All points, as integers of squared length 32."""
    return np.rint(lookup(np.arange(LEECH.num_codes)) * np.sqrt(32)).astype(np.int8)


def test_points_are_the_shortest_vectors_of_the_leech_lattice(points):
    chex.assert_trees_all_close((lookup([0, 5000, 190_000]) ** 2).sum(-1), np.ones(3), atol=1e-6)
    assert len(np.unique(points, axis=0)) == 196_560
    assert ((points.astype(int) ** 2).sum(1) == 32).all()
    assert len(np.unique(np.concatenate([points, -points]), axis=0)) == 196_560
    # Inner products of a point with the others: the kissing arrangement has only these angles.
    for i in (3, 50_000, 150_000):
        products = points.astype(int) @ points[i].astype(int)
        found = dict(zip(*np.unique(products, return_counts=True), strict=True))
        assert found == {-32: 1, -16: 4600, -8: 47104, 0: 93150, 8: 47104, 16: 4600, 32: 1}


def test_the_search_finds_the_nearest_point(points, rng):
    z = rng.normal(size=(300, 24)).astype(np.float32)
    z_q, codes, _ = jax.jit(LEECH.apply)({}, jnp.asarray(z))
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    best = (unit @ points.T.astype(np.float32)).max(1)
    chex.assert_trees_all_close((unit * z_q).sum(1) * np.sqrt(32), best, atol=1e-4)
    np.testing.assert_array_equal(lookup(codes), z_q)
    # Every point finds itself, of all three kinds.
    itself = [*range(0, 1104, 50), *itertools.chain(range(1104, 196_560, 7001))]
    found = LEECH.apply({}, jnp.asarray(lookup(itself)))[1]
    np.testing.assert_array_equal(found, itself)


def test_other_lattices_are_refused():
    with pytest.raises(ValueError, match="'e8', 'leech'"):
        QUANTIZERS["lattice"](lattice="d4").init(jax.random.key(0), jnp.zeros((1, 4)))

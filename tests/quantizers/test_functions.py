import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vq_jax.quantizers import functions


def test_nearest_codes_is_argmin_of_the_distances(rng):
    z = rng.normal(size=(2, 5, 6, 7)).astype(np.float32)
    codebook = rng.normal(size=(33, 7)).astype(np.float32)
    distances = ((z[..., None, :].astype(np.float64) - codebook) ** 2).sum(-1)
    codes = jax.jit(functions.nearest_codes)(z, codebook)
    chex.assert_type(codes, jnp.int32)
    chex.assert_trees_all_equal(
        codes, jnp.argmin(jnp.asarray(distances), axis=-1).astype(jnp.int32)
    )


def test_ties_go_to_the_first_entry_and_nan_stays_in_range():
    codebook = jnp.array([[1.0, 0], [0, 1.0], [1.0, 0]])
    chex.assert_trees_all_equal(
        functions.nearest_codes(jnp.array([[1.0, 0]]), codebook), jnp.array([0])
    )
    code = functions.nearest_codes(jnp.full((1, 2), jnp.nan), codebook)
    assert 0 <= int(code[0]) < 3


def test_search_in_blocks_equals_the_search_held_whole(rng, monkeypatch):
    z = rng.normal(size=(101, 4)).astype(np.float32)
    codebook = rng.normal(size=(16, 4)).astype(np.float32)
    whole = functions.nearest_codes(z, codebook)
    monkeypatch.setattr(functions, "_MAX_SCORES", 16 * 8)
    chex.assert_trees_all_equal(functions.nearest_codes(z, codebook), whole)


def test_a_large_search_never_holds_all_scores():
    n, k, d = 65_536, 8_192, 8
    shapes = (jax.ShapeDtypeStruct((n, d), jnp.float32), jax.ShapeDtypeStruct((k, d), jnp.float32))
    compiled = jax.jit(functions.nearest_codes).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < n * k * 4 / 50


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other(rng):
    z, z_q = jnp.asarray(rng.normal(size=(2, 64)) * [[1e3], [1e-3]], jnp.float32)
    chex.assert_trees_all_equal(functions.straight_through(z, z_q), z_q)
    to_z, to_q = jax.grad(lambda a, b: jnp.sum(3 * functions.straight_through(a, b)), (0, 1))(
        z, z_q
    )
    chex.assert_trees_all_equal(to_z, jnp.full(64, 3.0))
    chex.assert_trees_all_equal(to_q, jnp.zeros(64))


def test_kmeans_finds_separate_clusters(rng):
    centres = 10 * rng.normal(size=(6, 3))
    z = (centres[np.arange(600) % 6] + 0.01 * rng.normal(size=(600, 3))).astype(np.float32)
    found, counts = functions.kmeans(jax.random.key(0), jnp.asarray(z), 24, iterations=20)
    nearest = np.linalg.norm(centres[:, None] - np.asarray(found)[None], axis=-1).min(1)
    assert nearest.max() < 0.1
    assert counts.sum() == 600


def test_kmeans_is_the_same_on_four_devices(rng):
    z = jnp.asarray(rng.normal(size=(64, 5)), jnp.float32)
    key = jax.random.key(2)
    whole = functions.kmeans(key, z, 8)
    split = jax.pmap(
        lambda r: functions.kmeans(key, r, 8, axis_name="data"), axis_name="data", out_axes=None
    )(z.reshape(4, 16, 5))
    chex.assert_trees_all_close(whole, split, atol=1e-5)


@pytest.mark.parametrize("limit", [2**20, 4 * 9])
def test_mean_assignment_equals_the_softmax_and_its_gradient(rng, monkeypatch, limit):
    monkeypatch.setattr(functions, "_MAX_SCORES", limit)
    z = jnp.asarray(rng.normal(size=(23, 4)), jnp.float32)
    codebook = jnp.asarray(rng.normal(size=(9, 4)), jnp.float32)

    def plain(z, codebook):
        distances = jnp.sum((z[:, None] - codebook[None]) ** 2, -1)
        return jax.nn.softmax(-distances).mean(0)

    def score(f):
        return jax.grad(lambda z, c: jnp.sum(f(z, c) ** 2), (0, 1))

    chex.assert_trees_all_close(
        functions.mean_assignment(z, codebook), plain(z, codebook), atol=1e-5
    )
    chex.assert_trees_all_close(
        score(functions.mean_assignment)(z, codebook), score(plain)(z, codebook), atol=1e-5
    )

"""Tests of `functions` and `soft_assignments`, most of them against direct implementations."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vq_jax import losses
from vq_jax.quantizers import QUANTIZERS, blockwise, functions, soft_assignments


def test_nearest_codes_is_argmin_of_the_distances(rng):
    z = rng.normal(size=(2, 5, 6, 7)).astype(np.float32)
    codebook = rng.normal(size=(33, 7)).astype(np.float32)
    distances = ((z[..., None, :].astype(np.float64) - codebook) ** 2).sum(-1)
    codes = jax.jit(functions.nearest_codes)(z, codebook)
    chex.assert_type(codes, jnp.int32)
    chex.assert_trees_all_equal(
        codes, jnp.argmin(jnp.asarray(distances), axis=-1).astype(jnp.int32)
    )


def test_ties_go_to_the_first_entry_and_the_code_of_nan_is_in_range():
    codebook = jnp.array([[1.0, 0], [0, 1.0], [1.0, 0]])
    chex.assert_trees_all_equal(
        functions.nearest_codes(jnp.array([[1.0, 0]]), codebook), jnp.array([0])
    )
    code = functions.nearest_codes(jnp.full((1, 2), jnp.nan), codebook)
    assert 0 <= int(code[0]) < 3


def test_search_in_blocks_equals_search_without_blocks(rng, monkeypatch):
    z = rng.normal(size=(101, 4)).astype(np.float32)
    codebook = rng.normal(size=(16, 4)).astype(np.float32)
    codebook[11] = codebook[3]  # a tie between two blocks
    whole = functions.nearest_codes(z, codebook)
    for codes in (16, 5, 1):
        monkeypatch.setattr(blockwise, "MAX_SCORES", codes * 8)
        monkeypatch.setattr(functions, "_CPU_CODES_PER_BLOCK", codes)
        chex.assert_trees_all_equal(functions.nearest_codes(z, codebook), whole)
    assert 11 not in whole


def test_a_large_search_never_holds_all_scores():
    n, k, d = 65_536, 8_192, 8
    shapes = (jax.ShapeDtypeStruct((n, d), jnp.float32), jax.ShapeDtypeStruct((k, d), jnp.float32))
    compiled = jax.jit(functions.nearest_codes).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < n * k * 4 / 50


def test_straight_through_has_the_value_of_z_q_and_the_gradient_of_z(rng):
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


@pytest.fixture(params=["whole", "blocks"])
def blocks(request, monkeypatch):
    """Runs a test with the default block size, and with small blocks that need padding."""
    if request.param == "blocks":
        monkeypatch.setattr(blockwise, "MAX_SCORES", 4 * 9)
        monkeypatch.setattr(functions, "_CPU_CODES_PER_BLOCK", 4)


def assert_same_value_and_gradient(f, reference, *args, **tolerance):
    """Asserts that `f` and `reference` have equal outputs and gradients.

    Both return trees of arrays. The gradients are those of the summed cosines of all outputs, for
    every argument.
    """

    def total(f):
        return lambda *a: sum(jnp.sum(jnp.cos(leaf)) for leaf in jax.tree.leaves(f(*a)))

    chex.assert_trees_all_close(f(*args), reference(*args), **tolerance)
    every = tuple(range(len(args)))
    chex.assert_trees_all_close(
        jax.grad(total(f), every)(*args), jax.grad(total(reference), every)(*args), **tolerance
    )


@pytest.fixture
def scored(rng):
    """Returns latents [23, 4], keys [9, 4] and bias [9]."""
    return tuple(jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((23, 4), (9, 4), (9,)))


@pytest.mark.usefixtures("blocks")
def test_assignment_statistics_equal_those_of_the_softmax(scored):
    def plain(z, keys, bias):
        p = jax.nn.softmax(z @ keys.T + bias)
        return losses.entropy(p).mean(), p.mean(0)

    assert_same_value_and_gradient(
        soft_assignments.assignment_statistics, plain, *scored, atol=2e-5
    )


def test_distance_logits_are_distances(scored):
    z, codebook, _ = scored
    keys, bias = soft_assignments.distance_logits(codebook, 0.7)
    distances = jnp.sum((z[:, None] - codebook) ** 2, -1)
    chex.assert_trees_all_close(
        jax.nn.softmax(z @ keys.T + bias), jax.nn.softmax(-distances / 0.7), atol=1e-5
    )


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("noisy", [False, True])
def test_soft_lookup_has_the_hard_value_and_the_soft_gradient(scored, rng, noisy):
    values = jnp.asarray(rng.normal(size=(9, 5)), jnp.float32)
    keys = functions.row_keys(jax.random.key(3) if noisy else None, 23)

    def ours(z, weights, bias, values):
        return soft_assignments.soft_lookup(z, weights, bias, values, keys, 0.8)[0]

    def plain(z, weights, bias, values):
        logits = z @ weights.T + bias
        if noisy:
            logits += jax.vmap(lambda key: jax.random.gumbel(key, (9,)))(keys)
        soft = jax.nn.softmax(logits / 0.8)
        hard = jax.nn.one_hot(logits.argmax(1), 9)
        return (hard + soft - jax.lax.stop_gradient(soft)) @ values

    assert_same_value_and_gradient(ours, plain, *scored, values, atol=2e-5)
    z_q, codes = soft_assignments.soft_lookup(*scored, values, keys, 0.8)
    chex.assert_trees_all_equal(values[codes], z_q)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("group", [0, 1, 2, 5])
def test_binary_entropies_equal_those_of_enumerated_codes(rng, group):
    logits = jnp.asarray(2 * rng.normal(size=(23, 5)), jnp.float32)

    def plain(logits):
        each, average = 0.0, 0.0
        for start in range(0, 5, group or 5):
            part = logits[:, start : start + (group or 5)]
            bits = (np.arange(2 ** part.shape[1])[:, None] >> np.arange(part.shape[1])) & 1
            p = jnp.prod(jax.nn.sigmoid(part[:, None] * (2 * bits - 1)), axis=-1)
            each += losses.entropy(p).mean()
            average += losses.entropy(p.mean(0))
        return each, average

    assert_same_value_and_gradient(
        lambda logits: soft_assignments.binary_entropies(logits, group), plain, logits, atol=2e-5
    )


def test_rotation_equals_its_matrix(rng):
    z, z_q = jnp.asarray(rng.normal(size=(2, 10, 7)), jnp.float32)

    def matrix(e, q):
        unit = lambda x: x / jnp.linalg.norm(x)
        w = unit(unit(e) + unit(q))
        rotation = jnp.eye(7) - 2 * jnp.outer(w, w) + 2 * jnp.outer(unit(q), unit(e))
        return jnp.linalg.norm(q) / jnp.linalg.norm(e) * rotation

    rotations = jax.vmap(matrix)(z, z_q)
    chex.assert_trees_all_close(jnp.einsum("nij,nj->ni", rotations, z), z_q, atol=1e-5)
    chex.assert_trees_all_equal(functions.rotation_trick(z, z_q), z_q)
    direction = jnp.asarray(rng.normal(size=z.shape), jnp.float32)
    gradient = jax.grad(lambda z: jnp.sum(direction * functions.rotation_trick(z, z_q)))(z)
    chex.assert_trees_all_close(gradient, jnp.einsum("nij,ni->nj", rotations, direction), atol=1e-5)


@pytest.mark.parametrize("z_q", [jnp.zeros((1, 3)), -jnp.ones((1, 3)), jnp.ones((1, 3))])
def test_rotation_is_finite_where_it_is_undefined(z_q):
    for z in (jnp.ones((1, 3)), jnp.zeros((1, 3))):
        out, gradient = jax.value_and_grad(lambda z: functions.rotation_trick(z, z_q).sum())(z)
        chex.assert_tree_all_finite((out, gradient))


def test_orthogonality_equals_the_mean_over_all_pairs(rng):
    codebook = jnp.asarray(rng.normal(size=(12, 5)), jnp.float32)

    def plain(codebook):
        unit = codebook / jnp.linalg.norm(codebook, axis=1, keepdims=True)
        return jnp.sum((unit @ unit.T) ** 2) / 144 - 1 / 12

    assert_same_value_and_gradient(functions.orthogonality, plain, codebook, atol=1e-5)
    assert float(functions.orthogonality(jnp.eye(5))) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.usefixtures("blocks")
def test_nearest_other_excludes_the_entry_itself(rng):
    codebook = rng.normal(size=(9, 4)).astype(np.float32)
    distances = np.linalg.norm(codebook[:, None] - codebook, axis=-1) + np.diag([np.inf] * 9)
    found = functions.nearest_other(jnp.asarray(codebook))
    chex.assert_trees_all_close(found, distances.min(1).astype(np.float32), atol=1e-5)


def test_spherical_kmeans_finds_directions(rng):
    centres = functions.normalise(jnp.asarray(rng.normal(size=(5, 4)), jnp.float32))
    noise = 0.01 * jnp.asarray(rng.normal(size=(400, 4)), jnp.float32)
    z = functions.normalise(centres[jnp.arange(400) % 5] + noise)
    found, _ = functions.kmeans(jax.random.key(0), z, 20, iterations=20, unit_norm=True)
    chex.assert_trees_all_close(jnp.linalg.norm(found, axis=1), jnp.ones(20), atol=1e-5)
    assert float((1 - (centres @ found.T).max(1)).max()) < 1e-3


TOKENS, CODES = 65_536, 262_144


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("vq", {"dim": 8, "codebook": "gradient", "entropy_weight": 0.1}),
        ("vq", {"dim": 8, "estimator": "gumbel"}),
        ("simvq", {"dim": 8}),
        ("ibq", {"dim": 8}),
        ("gumbel", {"dim": 8}),
        ("lfq", {"bits": 18}),
        ("bsq", {"bits": 18, "entropy_group": 0}),
        ("lfq", {"bits": 24}),
    ],
)
def test_no_array_of_tokens_times_codes(name, fields):
    """Checks that a forward and backward pass needs under 2 GB, by the compiler's estimate.

    A float32 array of tokens x codes would need 69 GB.
    """
    fields = fields if "bits" in fields else {"num_codes": CODES, **fields}
    quantizer = QUANTIZERS[name](**fields)
    assert quantizer.num_codes >= CODES
    z = jax.ShapeDtypeStruct((TOKENS, quantizer.dim), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(quantizer.init, key, z)

    def loss(params, z, rest, key):
        z_q, _, aux = quantizer.apply({**rest, "params": params}, z, key=key)
        return jnp.sum(jnp.square(z_q)) + aux["loss"]

    params, rest = variables.get("params", {}), dict(variables)
    rest.pop("params", None)
    step = jax.jit(jax.value_and_grad(loss, (0, 1)))
    memory = step.lower(params, z, rest, key).compile().memory_analysis()
    total = memory.temp_size_in_bytes + memory.output_size_in_bytes
    assert total + memory.argument_size_in_bytes < 2e9

"""Coordinates and rotary angles on grids of one, two and three axes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vq_jax.models import PRIORS
from vq_jax.models.attention import grid_coordinates, rotary_angles, rotate
from vq_jax.models.transformer import init_params

GRIDS = [(), (6,), (3, 4), (2, 3, 4)]


@pytest.mark.parametrize("grid", GRIDS)
def test_coordinates_are_the_indices_of_the_cells(grid):
    found = grid_coordinates(grid, grid)
    expected = np.array(list(itertools.product(*map(range, grid))))
    np.testing.assert_allclose(found[:, len(found[0]) - len(grid) :], expected, atol=1e-12)
    if len(grid) < 2:  # axes of size 1 in front
        assert not found[:, : 2 - len(grid)].any()


def test_a_coarser_grid_covers_the_same_area():
    found = grid_coordinates((2, 2), (4, 6))
    np.testing.assert_allclose(found, [(0.5, 1.0), (0.5, 4.0), (2.5, 1.0), (2.5, 4.0)])


@pytest.mark.parametrize("grid", [(3, 4), (2, 3, 4)])
def test_scores_depend_on_differences_of_coordinates_along_every_axis(grid, rng):
    """The property of rotary embeddings: <R(p) q, R(k) x> is a function of p - k."""
    axes, head_dim = len(grid), 16
    q, x = (jnp.asarray(rng.normal(size=(1, 1, 1, head_dim)), jnp.float32) for _ in range(2))

    def score(p, k):
        a, b = (rotary_angles(np.array([place], float), head_dim) for place in (p, k))
        return float(jnp.sum(rotate(q, jnp.asarray(a)) * rotate(x, jnp.asarray(b))))

    origin = np.zeros(axes)
    for axis in range(axes):
        step = np.eye(axes)[axis]
        shifted = rng.integers(0, 5, axes)
        assert score(step, origin) == pytest.approx(score(step + shifted, shifted), abs=1e-4)
        assert abs(score(step, origin) - score(origin, origin)) > 1e-3


def test_two_axes_share_the_pairs_evenly():
    angles = rotary_angles(np.array([[1.0, 0.0], [0.0, 1.0]]), 8)
    rates = 10000.0 ** (-np.arange(2) / 2)
    np.testing.assert_allclose(angles, [[*rates, 0, 0], [0, 0, *rates]], rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in PRIORS if name != "next_scale"])
@pytest.mark.parametrize("grid", GRIDS)
def test_priors_run_on_grids_of_any_number_of_axes(name, grid):
    prior = PRIORS[name](
        num_codes=5, grid=grid, books=2, classes=1, condition=grid, dtype=jnp.float32,
        layers=1, width=24, heads=2, dropout=0.0,
    )  # fmt: skip
    params = jax.jit(lambda key: init_params(prior, key))(jax.random.key(0))
    codes = jnp.zeros((2, prior.length), jnp.int32)
    logits = prior.apply({"params": params}, codes, jnp.zeros(2, jnp.int32), codes)
    assert logits.shape == (2, 2 * int(np.prod(grid)), 5)


def test_three_axes_need_as_many_pairs():
    with pytest.raises(ValueError, match="rotary embeddings of 3 axes need 6"):
        PRIORS["causal"](
            num_codes=5, grid=(2, 2, 2), books=1, classes=1, condition=(), dtype=jnp.float32,
            width=8, heads=2,
        )  # fmt: skip

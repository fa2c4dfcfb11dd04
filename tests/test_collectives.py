"""Sums, means and sampled rows across devices."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vq_jax import collectives


@pytest.mark.parametrize("count", [5, 24, 40])
def test_sample_rows_returns_the_same_on_one_device_and_on_four(rng, count):
    rows = jnp.asarray(rng.normal(size=(24, 3)), jnp.float32)
    key = jax.random.key(1)
    whole = collectives.sample_rows(key, rows, count, None)
    split = jax.pmap(
        lambda r: collectives.sample_rows(key, r, count, "data"), axis_name="data", out_axes=None
    )(rows.reshape(4, 6, 3))
    chex.assert_trees_all_equal(whole, split)
    for row in np.asarray(whole):
        assert (row == np.asarray(rows)).all(axis=1).any()
    distinct = len(np.unique(np.asarray(whole), axis=0))
    assert distinct == count if count <= 24 else distinct <= 24


def test_pmean_and_psum_average_and_sum_over_devices(rng):
    x = jnp.asarray(rng.normal(size=(4, 5)), jnp.float32)
    run = partial(jax.pmap, axis_name="data", out_axes=None)
    chex.assert_trees_all_close(run(lambda v: collectives.pmean(v, "data"))(x), x.mean(0))
    chex.assert_trees_all_close(run(lambda v: collectives.psum(v, "data"))(x), x.sum(0))
    chex.assert_trees_all_equal(collectives.pmean(x, None), x)
    chex.assert_trees_all_equal(collectives.psum(x, None), x)

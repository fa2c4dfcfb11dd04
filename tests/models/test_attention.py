"""Attention against `jax.nn.dot_product_attention`."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vq_jax.models.attention import attend


def _reference(q, k, v, seen):
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    mask = None if seen is None else seen[None, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask).swapaxes(1, 2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("asking", [1, 5, 9])
@pytest.mark.parametrize("masked", [False, True])
def test_values_and_gradients_are_those_of_jax(asking, masked, dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (2, 3, asking, 8), (2, 3, 9, 8), (2, 3, 9, 8)
    q, k, v = (jax.random.normal(n, s, dtype) for n, s in zip(keys, shapes, strict=True))
    seen = np.tri(asking, 9, 9 - asking, dtype=bool) if masked else None

    def pull(function):
        out, back = jax.vjp(lambda *x: function(*x, seen), q, k, v)
        return out, back(jnp.cos(out))

    ours, theirs = pull(attend), pull(_reference)
    chex.assert_trees_all_equal_dtypes(ours, theirs)
    tolerance = 1e-5 if dtype == "float32" else 5e-2
    chex.assert_trees_all_close(ours, theirs, atol=tolerance, rtol=tolerance)


def test_large_logits_stay_finite():
    q = 1e4 * jnp.ones((1, 1, 4, 8))
    out = attend(q, q, jnp.ones_like(q), np.tri(4, dtype=bool))
    chex.assert_trees_all_close(out, jnp.ones_like(q))

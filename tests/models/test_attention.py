"""Attention against its equation in float32."""

import chex
import jax
import jax.numpy as jnp
import pytest

from vq_jax.models.attention import attend


def _reference(q, k, v, seen):
    q32, k32, v32 = (x.astype(jnp.float32) for x in (q, k, v))
    logits = jnp.einsum("bhsd,bhtd->bhst", q32, k32) / jnp.sqrt(q.shape[-1])
    if seen is not None:
        logits = jnp.where(seen, logits, -jnp.inf)
    return jnp.einsum("bhst,bhtd->bhsd", jax.nn.softmax(logits), v32).astype(v.dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("queries", [1, 5, 9])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_values_and_gradients_match_the_equation(monkeypatch, backend, queries, masked, dtype):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)  # It selects the implementation.
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (2, 3, queries, 8), (2, 3, 9, 8), (2, 3, 9, 8)
    q, k, v = (jax.random.normal(n, s, dtype) for n, s in zip(keys, shapes, strict=True))
    seen = jnp.tri(queries, 9, (9 - queries) // 2, dtype=bool) if masked else None

    def value_and_gradients(function):
        out, vjp = jax.vjp(lambda *x: function(*x, seen), q, k, v)
        return out, vjp(jnp.cos(out))

    run = jax.jit(value_and_gradients, static_argnums=0)
    actual, expected = run(attend), run(_reference)
    chex.assert_trees_all_equal_dtypes(actual, expected)
    tolerance = 1e-5 if dtype == "float32" else 5e-2
    chex.assert_trees_all_close(actual, expected, atol=tolerance, rtol=tolerance)


def test_large_logits_give_finite_outputs():
    q = 1e4 * jnp.ones((1, 1, 4, 8))
    out = attend(q, q, jnp.ones_like(q), jnp.tri(4, dtype=bool))
    chex.assert_trees_all_close(out, jnp.ones_like(q))

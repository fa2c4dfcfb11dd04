"""Embeddings of n-grams."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vq_jax.config import base, base_prior, check
from vq_jax.errors import UserError
from vq_jax.models.ngrams import NgramEmbedding, codes_before


@pytest.fixture(scope="module")
def module():
    return NgramEmbedding(orders=(2, 4), bits=12, dim=8, features=16)


def embed(module, params, codes):
    return module.apply(params, codes, codes_before(codes, module.context))


def test_codes_before_are_shifted():
    first, second = codes_before(jnp.array([[5, 6, 7]]), 2)
    np.testing.assert_array_equal(first, [[-1, 5, 6]])
    np.testing.assert_array_equal(second, [[-1, -1, 5]])


def test_an_embedding_depends_on_the_last_codes_alone(module, rng):
    codes = jnp.asarray(rng.integers(0, 256, (1, 24)))
    params = module.init(jax.random.key(0), codes, codes_before(codes, module.context))
    before = embed(module, params, codes)
    changed = embed(module, params, codes.at[0, 10].add(1))
    differ = np.abs(np.asarray(before - changed)).max(-1)[0] > 0
    np.testing.assert_array_equal(np.flatnonzero(differ), [10, 11, 12, 13])


def test_hashes_use_most_rows_and_tell_the_order_of_codes(module, rng):
    """The largest order of 4,096 random rows: about 1 - 1/e of them are hit by as many codes."""
    codes = jnp.asarray(rng.integers(0, 256, (1, 4096)))
    params = module.init(jax.random.key(0), codes, codes_before(codes, module.context))
    hit = jax.grad(lambda p: embed(module, p, codes).sum())(params)["params"]["tables"]
    shares = (jnp.abs(hit).max(-1) > 0).mean(-1)
    assert (jnp.abs(shares - (1 - np.exp(-1))) < 0.03).all(), shares
    ab, ba = (embed(module, params, jnp.array([pair])) for pair in ([1, 2], [2, 1]))
    assert np.abs(np.asarray(ab - ba))[0, 1].max() > 0


@pytest.mark.parametrize(
    ("prior", "orders", "message"),
    [("masked", (2,), "'causal'"), ("random_order", (2,), "'causal'"), ("causal", (1,), "orders")],
)
def test_orders_that_cannot_be_used_are_refused(prior, orders, message):
    config = base_prior(prior)
    config.phases.prior = 1
    config.prior.ngrams = orders
    with pytest.raises(UserError, match=message):
        check(config)
    model = base("text_conv")
    model.phases.joint = 1
    model.model.ngrams = (1,)
    with pytest.raises(UserError, match="orders of 2 or more"):
        check(model)

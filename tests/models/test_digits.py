"""Priors that predict the digits of codes, of the quantizers lfq, bsq and fsq."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import make_prior, make_tokenizer

from vq_jax import sampling
from vq_jax.codec.codec import Codec
from vq_jax.errors import UserError
from vq_jax.models import PRIORS
from vq_jax.quantizers import QUANTIZERS
from vq_jax.sampling import Draw

RADICES = (2, 3, 2)  # 12 codes, 5 logits


@pytest.fixture
def logits(rng):
    return jnp.asarray(rng.normal(size=(1, sampling.digit_logits(RADICES))), jnp.float32)


def test_probability_of_a_code_is_the_product_of_those_of_its_digits(logits):
    codes = jnp.arange(12)
    log_p = sampling.log_probability(jnp.tile(logits, (12, 1)), codes, RADICES)
    p = [[1 / (1 + np.exp(x)), 1 / (1 + np.exp(-x))] for x in (logits[0, 0], logits[0, 4])]
    middle = np.asarray(jax.nn.softmax(logits[0, 1:4]))
    # The lowest digit changes fastest.
    expected = [
        p[1][c] * middle[b] * p[0][a] for c, b, a in itertools.product(range(2), range(3), range(2))
    ]
    chex.assert_trees_all_close(jnp.exp(log_p), np.float32(expected), rtol=1e-5)
    assert sampling.likeliest(logits, RADICES)[0] == np.argmax(expected)
    digits = sampling.digits_of(codes, RADICES)
    np.testing.assert_array_equal(sampling.join_digits(digits, RADICES), codes)


def test_draws_have_these_probabilities(logits):
    keys = sampling.row_keys(jax.random.key(0), 0, 8000)
    drawn = sampling.draw_codes(keys, jnp.tile(logits, (8000, 1)), Draw(), RADICES)
    p = np.exp(sampling.log_probability(jnp.tile(logits, (12, 1)), jnp.arange(12), RADICES))
    found = np.bincount(drawn, minlength=12) / 8000
    assert (np.abs(found - p) < 4 * np.sqrt(p / 8000)).all()
    greedy = sampling.draw_codes(keys[:2], jnp.tile(logits, (2, 1)), Draw(temperature=0), RADICES)
    np.testing.assert_array_equal(greedy, np.argmax(p))


@pytest.mark.parametrize("name", ["lfq", "bsq", "fsq"])
def test_digits_of_codes_are_the_dimensions_of_latents(name, rng):
    fields = {"levels": (4, 3, 5)} if name == "fsq" else {"bits": 4}
    quantizer = QUANTIZERS[name](**fields)
    codes = jnp.arange(quantizer.num_codes)
    z = quantizer.apply({}, codes, method="lookup")
    order = range(z.shape[1] - 1, -1, -1) if name == "bsq" else range(z.shape[1])
    for digit, d in zip(sampling.digits_of(codes, quantizer.radices), order, strict=True):
        np.testing.assert_array_equal(np.unique(z[:, d], return_inverse=True)[1], digit)


def test_a_prior_over_2_18_codes_has_18_logits():
    prior = PRIORS["masked"](
        num_codes=2**18, grid=(2, 2), books=1, classes=0, condition=(), dtype=jnp.float32,
        radices=(2,) * 18, digits=True, layers=1, width=32, heads=2,
    )  # fmt: skip
    codes = jnp.array([[0, 2**18 - 1, -1, 77]])
    variables = prior.init(jax.random.key(0), codes, jnp.zeros(1, jnp.int32))
    chex.assert_shape(variables["params"]["head"]["kernel"], (1, 32, 18))
    chex.assert_shape(variables["params"]["codes"]["embedding"], (37, 32))
    logits = prior.apply(variables, codes, jnp.zeros(1, jnp.int32))
    chex.assert_shape(logits, (1, 4, 18))
    # Every bit of a code is seen, and a masked code has an embedding of its own.
    for changed in (codes.at[0, 3].set(76), codes.at[0, 3].set(77 + 2**17), codes.at[0, 2].set(0)):
        other = prior.apply(variables, changed, jnp.zeros(1, jnp.int32))
        assert np.abs(other - logits).max() > 1e-4


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer("lfq")


@pytest.mark.parametrize("name", ["causal", "masked", "random_order"])
def test_samples_and_files(tokenizer, name, rng):
    prior = make_prior(tokenizer, name, digits=True)
    assert prior.module.logits == 9
    codes = prior.sample_codes(3, label="Flags", guidance=2.0)
    assert codes.shape == (3, 4, 4) and codes.max() < 512 and len(np.unique(codes)) > 20
    if name == "causal":
        free = np.ones((2, 4, 4), bool)
        drawn, likelihood = prior.fill(codes[:2], free, seed=4)
        log_p = prior.log_probability(drawn).sum(1)
        np.testing.assert_allclose(likelihood, log_p, rtol=1e-4)
    codec = Codec(tokenizer, prior=prior)
    x = rng.integers(0, 256, size=(24, 20, 3), dtype=np.uint8)
    found, _ = codec.read(codec.compress(x, entropy="prior"))
    np.testing.assert_array_equal(found, codec.tiler.encode([x])[0])


def test_codes_without_digits_are_refused():
    with pytest.raises(UserError, match=r"prior\.digits needs codes that are numbers"):
        make_prior(make_tokenizer("vq"), "causal", digits=True)

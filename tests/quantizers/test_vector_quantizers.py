"""Tests of `VectorQuantizer`: its loss, its statistics and its field checks."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vq_jax.quantizers import VectorQuantizer

MUTABLE = ["params", "codebook"]


@pytest.fixture
def z(rng):
    return jnp.asarray(rng.normal(size=(2, 8, 8, 6)), jnp.float32)


def make(z, **kwargs):
    """Returns a quantizer and its variables after `initialise` on the latents `z`."""
    quantizer = VectorQuantizer(num_codes=16, dim=z.shape[-1], **kwargs)
    variables = quantizer.init(jax.random.key(0), z)
    _, variables = quantizer.apply(
        variables, z, jax.random.key(1), method="initialise", mutable=MUTABLE
    )
    return quantizer, variables


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_loss_equals_the_equation_and_trains_the_right_side(z, codebook):
    quantizer, variables = make(z, codebook=codebook, beta=0.3)
    _, codes, aux = quantizer.apply(variables, z)
    entries = np.asarray(variables["params"]["book"]["codebook"], np.float64)[np.asarray(codes)]
    error = ((np.asarray(z, np.float64) - entries) ** 2).mean()
    assert aux["loss"] == pytest.approx((1.3 if codebook == "gradient" else 0.3) * error, rel=1e-5)

    def loss(params, z):
        return quantizer.apply({**variables, "params": params}, z)[2]["loss"]

    to_params, to_z = jax.grad(loss, (0, 1))(variables["params"], z)
    chex.assert_trees_all_close(to_z, 0.3 * 2 * (z - entries) / z.size, atol=1e-6)
    moved = float(jnp.abs(to_params["book"]["codebook"]).max())
    assert moved > 0 if codebook == "gradient" else moved == 0


def test_initial_statistics_have_the_scale_of_one_batch(z):
    quantizer = VectorQuantizer(num_codes=16, dim=6)
    variables = quantizer.init(jax.random.key(0), z)
    many = jnp.concatenate([z] * 4)
    _, variables = quantizer.apply(
        variables, many, jax.random.key(1), 4, method="initialise", mutable=MUTABLE
    )
    tokens = z.size // z.shape[-1]
    assert float(variables["codebook"]["book"]["cluster_size"].sum()) == pytest.approx(
        tokens, rel=0.05
    )


def test_diversity_terms_spread_latents_and_codes(z):
    narrow = 1e-3 * z
    plain, variables = make(narrow)
    spread = VectorQuantizer(num_codes=16, dim=6, variance_weight=1.0, usage_weight=1.0)
    base = plain.apply(variables, narrow)[2]["loss"]
    assert spread.apply(variables, narrow)[2]["loss"] > base + 0.9
    gradient = jax.grad(lambda x: spread.apply(variables, x)[2]["loss"])(narrow)
    # Moving the latents away from their mean lowers the loss.
    assert float(jnp.sum(gradient * (narrow - narrow.mean((0, 1, 2))))) < 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"codebook": "em"}, "'ema', 'gradient'"),
        ({"estimator": "rotate"}, "'rotation'"),
        ({"distance": "dot"}, "'cosine'"),
        ({"heads": 5}, "must divide the 64 dimensions"),
        ({"orthogonal_weight": 1.0}, "codebook='gradient'"),
    ],
)
def test_errors_name_the_invalid_field(fields, message):
    with pytest.raises(ValueError, match=message):
        VectorQuantizer(**fields).init(jax.random.key(0), jnp.zeros((1, 64)))


def test_a_larger_rate_weight_needs_fewer_bits(rng):
    z, bits = jnp.asarray(rng.normal(size=(4, 16, 16, 2)), jnp.float32), []
    for rate_weight in (0.0, 0.1, 0.4):
        quantizer, variables = make(z, rate_weight=rate_weight, revive_below=0.0, decay=0.8)
        for i in range(30):
            _, codes, aux = quantizer.apply(variables, z)
            _, variables = quantizer.apply(
                variables, z, codes, jax.random.key(i), method="update", mutable=MUTABLE
            )
        p = np.asarray(aux["counts"]) / codes.size
        bits.append(-(p * np.log2(np.maximum(p, 1e-9))).sum())
        if rate_weight:
            assert float(aux["rate"]) == pytest.approx(bits[-1], rel=0.1, abs=0.02)
    assert bits[0] > bits[1] + 0.05 and bits[1] > bits[2] + 0.2


def test_sampled_codes_cannot_be_charged(z):
    with pytest.raises(ValueError, match="estimator 'gumbel'"):
        make(z, rate_weight=0.1, estimator="gumbel")

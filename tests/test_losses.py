"""Losses against their equations."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vq_jax import losses


def test_reconstruction_losses_are_unreduced_float32(rng):
    a, b = rng.normal(size=(2, 3, 4, 4, 2))
    for loss, expected in ((losses.l1, np.abs(a - b)), (losses.l2, (a - b) ** 2)):
        value = loss(jnp.asarray(a, jnp.bfloat16), jnp.asarray(b, jnp.bfloat16))
        chex.assert_shape(value, a.shape)
        chex.assert_type(value, jnp.float32)
        chex.assert_trees_all_close(loss(jnp.asarray(a), jnp.asarray(b)), expected, rtol=1e-5)


def test_adversarial_losses_match_their_equations(rng):
    real, fake = rng.normal(size=(2, 7)) * 3

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    cross_entropy = -0.5 * (np.log(sigmoid(real)) + np.log(1 - sigmoid(fake)))
    hinge = 0.5 * (np.maximum(0, 1 - real) + np.maximum(0, 1 + fake))
    expected = {
        "hinge": (hinge, -fake),
        "vanilla": (cross_entropy, -fake),
        "non_saturating": (cross_entropy, -np.log(sigmoid(fake))),
    }
    assert expected.keys() == losses.ADVERSARIAL.keys()
    for name, (disc, gen) in losses.ADVERSARIAL.items():
        chex.assert_trees_all_close(
            disc(jnp.asarray(real), jnp.asarray(fake)), expected[name][0], rtol=1e-5
        )
        chex.assert_trees_all_close(gen(jnp.asarray(fake)), expected[name][1], rtol=1e-5)


@pytest.mark.parametrize("name", losses.ADVERSARIAL)
def test_adversarial_gradients_have_the_right_sign(name):
    disc, gen = losses.ADVERSARIAL[name]
    real, fake = jnp.array(0.3), jnp.array(-0.2)
    assert jax.grad(disc, 0)(real, fake) < 0  # raises real logits
    assert jax.grad(disc, 1)(real, fake) > 0  # lowers fake logits
    assert jax.grad(gen)(fake) < 0  # raises fake logits


def test_adaptive_weight_is_the_clipped_ratio_without_gradient():
    assert losses.adaptive_weight(jnp.array(3.0), jnp.array(1.5)) == pytest.approx(2.0, rel=1e-3)
    assert losses.adaptive_weight(jnp.array(1.0), jnp.array(0.0)) == 1e4
    assert losses.adaptive_weight(jnp.array(9.0), jnp.array(1.0), limit=2.0) == 2.0
    assert jax.grad(losses.adaptive_weight)(jnp.array(3.0), jnp.array(1.5)) == 0


def test_r1_penalty_is_the_squared_gradient_norm(rng):
    x = jnp.asarray(rng.normal(size=(5, 2, 2, 1)), jnp.float32)
    penalty = losses.r1_penalty(lambda v: 1.5 * jnp.sum(v**2, axis=(1, 2, 3)), x)
    chex.assert_trees_all_close(penalty, 9.0 * jnp.sum(x**2, axis=(1, 2, 3)), rtol=1e-5)


def test_lecam_penalises_logits_beyond_the_moving_averages():
    chex.assert_trees_all_close(
        losses.lecam(
            jnp.array([1.0, 3.0]), jnp.array([-2.0, -4.0]), jnp.array(-2.0), jnp.array(1.0)
        ),
        jnp.array([0.0, 4.0 + 4.0]),
    )


def test_latent_variance_is_zero_above_a_standard_deviation_of_one():
    terms = losses.latent_variance(jnp.array([0.0, 0.25, 1.0, 4.0]))
    chex.assert_trees_all_close(terms, jnp.array([0.99, 0.5, 0.0, 0.0]), atol=1e-3)


def test_code_usage_is_zero_for_uniform_use_and_one_for_a_single_code():
    assert losses.code_usage(jnp.full((8,), 1 / 8)) == pytest.approx(0.0, abs=1e-6)
    assert losses.code_usage(jnp.eye(8)[0]) == pytest.approx(1.0, abs=1e-6)


def test_kernel_norm_excludes_biases():
    tree = {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full((2,), 100.0)}
    assert losses.kernel_norm(tree) == pytest.approx(4.0)

"""Convolutions against XLA's, in value and gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from vq_jax.models import convolution
from vq_jax.models.convolution import conv_general_dilated

DIMENSIONS = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}


def inputs(rng, shape, features, size=3, dtype=jnp.float32):
    x = rng.normal(size=shape)
    kernel = rng.normal(size=(size, size, shape[-1], features)) / np.sqrt(size**2 * shape[-1])
    return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)


def values_and_gradients(conv, x, kernel, padding, stride=1):
    def apply(x, kernel):
        return conv(x, kernel, (stride, stride), padding, **DIMENSIONS)

    y, vjp = jax.vjp(apply, x, kernel)
    dy = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype)
    return y, *vjp(dy)


@pytest.mark.parametrize(
    ("shape", "features", "size", "padding"),
    [
        ((2, 8, 16, 32), 48, 3, "SAME"),
        ((3, 4, 4, 64), 32, 3, ((1, 1), (1, 1))),
        ((4, 64, 64, 32), 32, 3, "SAME"),  # in several blocks
        ((2, 8, 16, 64), 80, 3, "SAME"),  # with Winograd's algorithm for the output, too
        ((4, 48, 64, 64), 64, 3, "SAME"),
        ((2, 6, 9, 3), 32, 3, "SAME"),  # padded to four channels
        ((2, 7, 9, 40), 24, 1, "SAME"),
    ],
)
@pytest.mark.parametrize("devices", [1, 4])  # Blocks need one device.
def test_values_and_gradients_match_xla(rng, monkeypatch, shape, features, size, padding, devices):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    x, kernel = inputs(rng, shape, features, size)
    actual = values_and_gradients(conv_general_dilated, x, kernel, padding)
    expected = values_and_gradients(lax.conv_general_dilated, x, kernel, padding)
    for a, b in zip(actual, expected, strict=True):
        assert float(jnp.abs(a - b).max()) < 2e-5 * float(jnp.abs(b).max())


def test_empty_batch_gives_an_empty_result(rng):
    x, kernel = inputs(rng, (1, 8, 8, 32), 32)
    assert conv_general_dilated(x[:0], kernel, (1, 1), "SAME", **DIMENSIONS).shape == (0, 8, 8, 32)


@pytest.mark.parametrize("features", [32, 64])
def test_bfloat16_is_computed_in_float32(rng, features):
    x, kernel = inputs(rng, (2, 8, 8, features), features, dtype=jnp.bfloat16)
    actual = values_and_gradients(conv_general_dilated, x, kernel, "SAME")
    in_float32 = (v.astype(jnp.float32) for v in (x, kernel))
    expected = values_and_gradients(lax.conv_general_dilated, *in_float32, "SAME")
    for a, b in zip(actual, expected, strict=True):
        chex.assert_type(a, jnp.bfloat16)
        assert float(jnp.abs(a - b).max()) < 0.01 * float(jnp.abs(b).max())


def test_second_derivative_matches_xla(rng):
    x, kernel = inputs(rng, (1, 4, 8, 32), 32)

    def penalty(conv):
        def squared_gradient(kernel):
            gradient = jax.grad(lambda x: jnp.square(conv(x, kernel)).sum())
            return jnp.square(gradient(x)).sum()

        return jax.grad(squared_gradient)(kernel)

    a, b = penalty(convolution.conv3x3), penalty(convolution._xla)
    assert float(jnp.abs(a - b).max()) < 1e-4 * float(jnp.abs(b).max())


@pytest.mark.parametrize(
    ("shape", "features", "stride", "padding", "fast"),
    [
        ((1, 8, 8, 32), 32, 1, "SAME", True),
        ((1, 6, 8, 32), 32, 1, "SAME", False),
        ((1, 8, 8, 3), 64, 1, "SAME", False),
        ((1, 8, 8, 32), 3, 1, "SAME", False),
        ((1, 8, 8, 32), 32, 2, "SAME", False),
        ((1, 8, 8, 32), 32, 1, "VALID", False),
        ((1, 8, 8, 32), 32, 1, ((0, 1), (0, 1)), False),
    ],
)
def test_other_convolutions_use_xla(rng, shape, features, stride, padding, fast):
    x, kernel = inputs(rng, shape, features)

    def conv(x, kernel):
        return conv_general_dilated(x, kernel, (stride, stride), padding, **DIMENSIONS)

    assert ("custom_vjp" in str(jax.make_jaxpr(conv)(x, kernel))) == fast
    if not fast:
        expected = lax.conv_general_dilated(x, kernel, (stride, stride), padding, **DIMENSIONS)
        chex.assert_trees_all_equal(conv(x, kernel), expected)


def test_a_program_for_any_batch_size_can_be_exported(rng):
    kernel = jnp.asarray(rng.normal(size=(3, 3, 64, 64)), jnp.float32)

    def run(x):
        return conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    (batch,) = jax.export.symbolic_shape("b")
    spec = jax.ShapeDtypeStruct((batch, 8, 8, 64), jnp.float32)
    program = jax.export.export(jax.jit(run), platforms=("cpu", "cuda", "tpu"))(spec)
    x = jnp.asarray(rng.normal(size=(3, 8, 8, 64)), jnp.float32)
    np.testing.assert_allclose(program.call(x), run(x), atol=1e-3)

"""Layers against Flax, PyTorch and their equations."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vq_jax.models import layers


@pytest.mark.parametrize("shift", [0.0, 10.0])
def test_group_norm_matches_flax(rng, shift):
    x = jnp.asarray(shift + rng.normal(size=(2, 8, 6, 64)), jnp.float32)
    norm, reference = layers.GroupNorm(), nn.GroupNorm(32, epsilon=1e-6)
    variables = norm.init(jax.random.key(0), x)
    # Both compute the variance as a difference of means, which rounds differently far from 0.
    tolerance = {"rtol": 2e-3, "atol": 1e-3} if shift else {"rtol": 1e-5, "atol": 1e-4}
    values = norm.apply(variables, x), reference.apply(variables, x)
    chex.assert_trees_all_close(*values, **tolerance)

    def grad(module):
        return jax.grad(lambda x: jnp.sum(module.apply(variables, x) ** 3))(x)

    chex.assert_trees_all_close(grad(norm), grad(reference), **tolerance)


def test_group_norm_of_a_constant_map_in_bfloat16_is_zero():
    norm = layers.GroupNorm(dtype=jnp.bfloat16)
    x = jnp.full((1, 4, 4, 32), 7.0)
    y = norm.apply(norm.init(jax.random.key(0), x), x)
    chex.assert_type(y, jnp.bfloat16)
    chex.assert_trees_all_close(y, jnp.zeros_like(y), atol=1e-2)


def test_group_norm_accepts_any_number_of_channels():
    norm = layers.GroupNorm()
    x = jnp.ones((1, 2, 2, 48)) * jnp.arange(48)
    assert np.isfinite(np.asarray(norm.apply(norm.init(jax.random.key(0), x), x))).all()


def test_transposed_conv_matches_flax_forward_and_backward(rng):
    x = jnp.asarray(rng.normal(size=(2, 5, 7, 6)), jnp.float32)
    layer, reference = layers.TransposedConv(4), nn.ConvTranspose(4, (4, 4), (2, 2))
    variables = reference.init(jax.random.key(0), x)
    chex.assert_trees_all_equal_shapes(variables, layer.init(jax.random.key(0), x))

    def run(module):
        value, grads = jax.value_and_grad(
            lambda v, x: jnp.sum(jnp.sin(module.apply(v, x))), argnums=(0, 1)
        )(variables, x)
        return module.apply(variables, x), value, grads

    chex.assert_trees_all_close(run(layer), run(reference), atol=1e-4, rtol=1e-4)


def test_batch_norm_on_four_devices_matches_one_device(rng):
    x = jnp.asarray(2 + rng.normal(size=(8, 3, 3, 5)), jnp.float32)
    norm = layers.BatchNorm()
    variables = norm.init(jax.random.key(0), x)
    one = norm.apply(variables, x)
    four = jax.pmap(lambda x: norm.apply(variables, x, axis_name="data"), axis_name="data")(
        x.reshape(4, 2, 3, 3, 5)
    )
    chex.assert_trees_all_close(one, four.reshape(x.shape), atol=1e-5)
    scale, bias = variables["params"]["scale"], variables["params"]["bias"]
    expected = (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-5) * scale + bias
    chex.assert_trees_all_close(one, expected, atol=1e-4)


def test_attention_matches_its_equation(rng):
    x = jnp.asarray(rng.normal(size=(1, 3, 2, 32)), jnp.float32)
    attention = layers.Attention()
    variables = attention.init(jax.random.key(0), x)
    params = variables["params"]
    h = layers.GroupNorm().apply({"params": params["norm"]}, x).reshape(6, 32)
    q, k, v = (h @ params[n]["kernel"][0, 0] + params[n]["bias"] for n in "qkv")
    mixed = jax.nn.softmax(q @ k.T / np.sqrt(32)) @ v
    out = mixed @ params["out"]["kernel"][0, 0] + params["out"]["bias"]
    chex.assert_trees_all_close(attention.apply(variables, x), x + out.reshape(x.shape), atol=1e-4)


def test_downsample_matches_torch_with_padding_at_the_bottom_and_right(rng):
    torch = pytest.importorskip("torch")
    x = rng.normal(size=(2, 6, 8, 5)).astype(np.float32)
    down = layers.Downsample(7)
    variables = down.init(jax.random.key(0), x)
    kernel = np.asarray(variables["params"]["conv"]["kernel"]).transpose(3, 2, 0, 1)
    padded = torch.nn.functional.pad(torch.tensor(x.transpose(0, 3, 1, 2)), (0, 1, 0, 1))
    expected = torch.nn.functional.conv2d(padded, torch.tensor(kernel), stride=2)
    chex.assert_trees_all_close(
        down.apply(variables, x), expected.numpy().transpose(0, 2, 3, 1), atol=1e-5
    )

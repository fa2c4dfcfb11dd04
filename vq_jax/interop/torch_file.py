"""Reads files of `torch.save` without PyTorch, and without running any code in them.

Both formats are supported: the current zip archive, and the legacy sequence of pickles followed by
raw storages. The file is memory-mapped and tensors are views of it, so that they take no memory.
"""

import mmap
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from vq_jax.errors import UserError, first_line
from vq_jax.interop.pickles import File, Global, read_pickle

_MAGIC = 0x1950A86A20F9469CFC6C  # First value in a legacy file.
# Storage class of PyTorch -> dtype.
_STORAGES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.uint8,
}


class _Storage(NamedTuple):
    """A reference to a storage: its key in the file, and the dtype of its elements."""

    key: str
    dtype: Any


class _Tensor:
    """A reference to a tensor in a storage.

    It is not a NamedTuple, so that it cannot be confused with a tuple in the file.
    """

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any):
        if not isinstance(storage, _Storage):
            raise TypeError("a tensor has no storage")
        numbers = [offset, *shape, *strides]
        if len(shape) != len(strides) or len(shape) > 16:
            raise ValueError("a tensor has an invalid shape")
        if not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
            raise ValueError("a tensor has an invalid shape")
        self.storage, self.offset = storage, offset
        self.shape, self.strides = tuple(shape), tuple(strides)

    def view(self, flat: np.ndarray) -> np.ndarray:
        """Returns the tensor as a read-only view of its storage.

        Raises:
          ValueError: the tensor has elements outside the storage, or more elements than it.
        """
        if 0 in self.shape:
            return np.zeros(self.shape, flat.dtype)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        count = 1
        for n in self.shape:
            count *= n
        if last >= len(flat) or count > len(flat):
            raise ValueError("a tensor extends beyond its storage")
        byte_strides = [stride * flat.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(
            flat[self.offset :], self.shape, byte_strides, writeable=False
        )


def _storage_of(pid: Any) -> _Storage:
    """Returns the storage that a persistent id refers to."""
    kind, cls, key, _, _, *view = pid
    if any(part is not None for part in view):  # Files of 2017 may have such storages.
        raise ValueError("a storage is a view of another storage, which is not supported")
    name = cls.name if isinstance(cls, Global) and cls.module in ("torch", "torch.storage") else ""
    if kind != "storage" or name not in _STORAGES:
        raise ValueError(f"a storage has the type {cls}, which is not supported")
    return _Storage(str(key), np.dtype(_STORAGES[name]))


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


_CALLS = {
    "torch._utils._rebuild_tensor": _rebuild,
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
}


def _read(file: File, storages: dict[str, _Storage] | None = None) -> Any:
    """Reads one pickle.

    Args:
      file: a file whose position is the start of the pickle.
      storages: key -> storage; the storages that the pickle refers to are added to it.
    """

    def load(pid: Any) -> _Storage:
        storage = _storage_of(pid)
        if storages is not None:
            storages[storage.key] = storage
        return storage

    return read_pickle(file, calls=_CALLS, persistent_load=load)


def read_torch_file(path: Path) -> Any:
    """Reads a file of `torch.save`.

    Args:
      path: a file of either format.

    Returns:
      what `read_pickle` returns, with tensors as read-only views of the memory-mapped file.
      bfloat16 tensors have the dtype of `ml_dtypes`.

    Raises:
      UserError: the file cannot be read, calls a function that tensors do not need, or has a tensor
        whose elements are not in the file.
    """
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if data[:2] == b"PK":
            return _read_zip(path, data)
        return _read_legacy(data)
    except UserError as e:
        raise UserError(f"{path}: {e}") from e
    except zipfile.BadZipFile as e:
        raise UserError(
            f"cannot read {path}: it is damaged or incomplete: download it again"
        ) from e
    except Exception as e:  # A damaged file can raise anything.
        raise UserError(f"cannot read {path}: {first_line(e)}") from e


def _read_zip(path: Path, data: mmap.mmap) -> Any:
    """Reads the zip format."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in members if name.rpartition("/")[2] == "data.pkl"]
    if any(name.endswith("constants.pkl") for name in members):
        raise UserError(
            "it is a TorchScript program, not a state dict: save model.state_dict() instead"
        )
    if len(pickles) != 1:
        raise UserError("it is a zip file, but torch.save did not write it")
    root = pickles[0].removesuffix("data.pkl")

    def locate(name: str) -> tuple[int, int]:
        """Returns the (start, length) of a member's bytes in the file."""
        info = members[name]
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise UserError(f"{name[:80]!a} is compressed, which torch.save never does: refused")
        header = data[info.header_offset : info.header_offset + 30]
        if header[:4] != b"PK\x03\x04":
            raise ValueError(f"the archive's directory has a wrong offset for {name[:80]!a}")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        start = info.header_offset + 30 + name_length + extra_length
        if info.file_size != info.compress_size or start + info.file_size > len(data):
            raise ValueError(
                f"{name[:80]!a} extends beyond the file, which may be incomplete: download it again"
            )
        return start, info.file_size

    order = "<"
    if f"{root}byteorder" in members:
        start, length = locate(f"{root}byteorder")
        order = ">" if data[start : start + length] == b"big" else "<"
    start, length = locate(pickles[0])
    data.seek(start)
    tree = _read(data)
    if data.tell() > start + length:
        raise ValueError("its pickle extends beyond its member of the archive")

    def elements(storage: _Storage) -> np.ndarray:
        start, length = locate(f"{root}data/{storage.key}")
        dtype = storage.dtype.newbyteorder(order)
        return np.frombuffer(data, dtype, length // dtype.itemsize, start)

    return _with_arrays(tree, elements)


def _read_legacy(data: mmap.mmap) -> Any:
    """Reads the legacy format.

    It has five pickles: magic number, protocol, description of the machine, the object, and the
    keys of the storages. After them come the storages, each an int64 count and its elements.
    """
    magic = _read(data)
    if magic != _MAGIC:
        raise UserError("it is a pickle, but torch.save did not write it")
    _read(data)
    machine = _read(data)
    little = not isinstance(machine, dict) or machine.get("little_endian", True)
    order = "<" if little else ">"
    storages: dict[str, _Storage] = {}
    tree = _read(data, storages)
    elements = {}
    for key in _read(data):
        dtype = storages[str(key)].dtype.newbyteorder(order)
        (count,) = struct.unpack(f"{order}q", data.read(8))
        start = data.tell()
        if not 0 <= count <= (len(data) - start) // dtype.itemsize:
            raise ValueError(
                "a storage extends beyond the file, which may be incomplete: download it again"
            )
        elements[str(key)] = np.frombuffer(data, dtype, count, start)
        data.seek(start + count * dtype.itemsize)
    return _with_arrays(tree, lambda storage: elements[storage.key])


def _with_arrays(tree: Any, elements: Callable[[_Storage], np.ndarray]) -> Any:
    """Replaces the tensors in nested dicts, lists and tuples by arrays.

    Args:
      tree: what `_read` returned.
      elements: function from a storage to its elements, one-dimensional.
    """

    def walk(node: Any) -> Any:
        if isinstance(node, _Tensor):
            return node.view(elements(node.storage))
        if isinstance(node, dict):
            return {key: walk(value) for key, value in node.items()}
        if isinstance(node, list | tuple) and type(node) in (list, tuple):
            return type(node)(walk(item) for item in node)
        return node

    return walk(tree)

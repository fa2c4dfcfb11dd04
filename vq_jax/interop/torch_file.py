"""What `torch.save` wrote, read without PyTorch and without running what is in the file.

Both forms are read: the zip archive of today, and the older row of pickles before raw storages. The
tensors come as views of the file, which is mapped rather than read: nothing is allocated for them.
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

_MAGIC = 0x1950A86A20F9469CFC6C
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
    key: str
    dtype: Any


class _Tensor:
    """A tensor's place in its storage. A class of its own, so that it is no tuple of the file's."""

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any):
        if not isinstance(storage, _Storage):
            raise TypeError("a tensor without a storage")
        numbers = [offset, *shape, *strides]
        if len(shape) != len(strides) or len(shape) > 16:
            raise ValueError("a tensor of no shape")
        if not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
            raise ValueError("a tensor of no shape")
        self.storage, self.offset = storage, offset
        self.shape, self.strides = tuple(shape), tuple(strides)

    def within(self, flat: np.ndarray) -> np.ndarray:
        """The tensor, as a view of its storage, which may not be smaller than it."""
        if 0 in self.shape:
            return np.zeros(self.shape, flat.dtype)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        count = 1
        for n in self.shape:
            count *= n
        if last >= len(flat) or count > len(flat):
            raise ValueError("a tensor does not lie within its storage")
        steps = [stride * flat.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(
            flat[self.offset :], self.shape, steps, writeable=False
        )


def _storage_of(pid: Any) -> _Storage:
    kind, of, key, _, _, *view = pid
    if any(part is not None for part in view):  # files of 2017, where a storage could be a part
        raise ValueError("a storage that is a view of another")
    name = of.name if isinstance(of, Global) and of.module in ("torch", "torch.storage") else ""
    if kind != "storage" or name not in _STORAGES:
        raise ValueError(f"a storage of {of}")
    return _Storage(str(key), np.dtype(_STORAGES[name]))


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


_CALLS = {
    "torch._utils._rebuild_tensor": _rebuild,
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
}


def _read(file: File, met: dict[str, _Storage] | None = None) -> Any:
    """A pickle's tree; the storages it names are added to `met`."""

    def storage(pid: Any) -> _Storage:
        found = _storage_of(pid)
        if met is not None:
            met[found.key] = found
        return found

    return read_pickle(file, calls=_CALLS, persistent_load=storage)


def read_torch_file(path: Path) -> Any:
    """What a file of `torch.save` holds, with its tensors as arrays.

    Args:
      path: a file of either form.

    Returns:
      dicts, lists and numbers, as `read_pickle` gives them; tensors are read-only arrays that look
      into the file, bfloat16 ones of `ml_dtypes`.

    Raises:
      UserError: it cannot be read, asks for more than tensors, or holds a tensor that is not in it.
    """
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if data[:2] == b"PK":
            return _read_zip(path, data)
        return _read_row(data)
    except UserError as e:
        raise UserError(f"{path}: {e}") from e
    except zipfile.BadZipFile as e:
        raise UserError(f"cannot read {path}: it is damaged, or only a part: fetch it again") from e
    except Exception as e:  # whatever a damaged file makes a parser raise
        raise UserError(f"cannot read {path}: {first_line(e)}") from e


def _read_zip(path: Path, data: mmap.mmap) -> Any:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in members if name.rpartition("/")[2] == "data.pkl"]
    if any(name.endswith("constants.pkl") for name in members):
        raise UserError("a TorchScript program, not a state dict: save model.state_dict() instead")
    if len(pickles) != 1:
        raise UserError("a zip file, but not one that torch.save wrote")
    root = pickles[0].removesuffix("data.pkl")

    def place(name: str) -> tuple[int, int]:
        """Where a member's bytes lie in the file: (start, length)."""
        info = members[name]
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise UserError(f"{name[:80]!a} is compressed, which torch.save never does: refused")
        header = data[info.header_offset : info.header_offset + 30]
        if header[:4] != b"PK\x03\x04":
            raise ValueError(f"{name[:80]!a} is not where the archive says")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        start = info.header_offset + 30 + name_length + extra_length
        if info.file_size != info.compress_size or start + info.file_size > len(data):
            raise ValueError(f"{name[:80]!a} does not lie within the file: is it whole?")
        return start, info.file_size

    order = "<"
    if f"{root}byteorder" in members:
        start, length = place(f"{root}byteorder")
        order = ">" if data[start : start + length] == b"big" else "<"
    start, length = place(pickles[0])
    data.seek(start)
    tree = _read(data)
    if data.tell() > start + length:
        raise ValueError("its pickle does not end where it should")

    def storage(of: _Storage) -> np.ndarray:
        start, length = place(f"{root}data/{of.key}")
        dtype = of.dtype.newbyteorder(order)
        return np.frombuffer(data, dtype, length // dtype.itemsize, start)

    return _with_arrays(tree, storage)


def _read_row(data: mmap.mmap) -> Any:
    """A row of pickles (magic number, protocol, the writer's machine, the tree, the storages' keys),
    then the storages, each an int64 count and its elements."""
    magic = _read(data)
    if magic != _MAGIC:
        raise UserError("a pickle, but not a file that torch.save wrote")
    _read(data)
    machine = _read(data)
    little = not isinstance(machine, dict) or machine.get("little_endian", True)
    order = "<" if little else ">"
    met: dict[str, _Storage] = {}
    tree = _read(data, met)
    storages = {}
    for key in _read(data):
        dtype = met[str(key)].dtype.newbyteorder(order)
        (count,) = struct.unpack(f"{order}q", data.read(8))
        start = data.tell()
        if not 0 <= count <= (len(data) - start) // dtype.itemsize:
            raise ValueError("a storage does not lie within the file: is it whole?")
        storages[str(key)] = np.frombuffer(data, dtype, count, start)
        data.seek(start + count * dtype.itemsize)
    return _with_arrays(tree, lambda of: storages[of.key])


def _with_arrays(tree: Any, storage: Callable[[_Storage], np.ndarray]) -> Any:
    """The tree with arrays for tensors; `storage` gives the elements of a storage."""

    def walk(node: Any) -> Any:
        if isinstance(node, _Tensor):
            return node.within(storage(node.storage))
        if isinstance(node, dict):
            return {key: walk(value) for key, value in node.items()}
        if isinstance(node, list | tuple) and type(node) in (list, tuple):
            return type(node)(walk(item) for item in node)
        return node

    return walk(tree)

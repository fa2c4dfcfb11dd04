"""Tensors of a PyTorch state dict, read without PyTorch and without running what is in the file.

Only the older form is read here: a row of pickles, then the storages, each an int64 count and its raw
elements. The pickles may build dicts and tensors and nothing else.
"""

import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vq_jax.errors import UserError, first_line

_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {"FloatStorage": np.float32, "LongStorage": np.int64}


class _Storage(NamedTuple):
    key: str
    dtype: Any


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild(storage, offset, shape, strides, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch" and name in _STORAGES:
            return name
        raise UserError(f"the weight file asks for {module}.{name}, which no tensor needs: refused")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, *_ = pid
        if kind != "storage" or dtype not in _STORAGES:
            raise UserError(f"the weight file holds {dtype} storages, which are not known")
        return _Storage(str(key), _STORAGES[dtype])


def read_torch_file(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict.

    Args:
      path: a file that `torch.save` wrote in its older form.

    Raises:
      UserError: it cannot be read, is of another form, or asks for anything but tensors.
    """
    try:
        file = io.BytesIO(path.read_bytes())
        if _Unpickler(file).load() != _MAGIC:
            raise UserError(f"{path} is not a PyTorch file of the older form")
        for _ in range(2):  # protocol, the writer's machine
            _Unpickler(file).load()
        state = _Unpickler(file).load()
        storages = {}
        tensors = {k: v for k, v in state.items() if isinstance(v, _Tensor)}
        dtypes = {t.storage.key: t.storage.dtype for t in tensors.values()}
        for key in _Unpickler(file).load():
            count = int(np.frombuffer(file.read(8), "<i8")[0])
            dtype = np.dtype(dtypes[str(key)])
            data = file.read(count * dtype.itemsize)
            storages[str(key)] = np.frombuffer(data, dtype.newbyteorder("<"), count)
        return {name: _resolve(tensor, storages) for name, tensor in tensors.items()}
    except UserError:
        raise
    except Exception as e:  # whatever a damaged file makes a parser raise
        raise UserError(f"cannot read {path}: {first_line(e)}") from e


def _resolve(tensor: _Tensor, storages: dict[str, np.ndarray]) -> np.ndarray:
    flat = storages[tensor.storage.key]
    shape, strides = tensor.shape, tensor.strides
    last = tensor.offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if tensor.offset < 0 or min((0, *strides)) < 0 or min((1, *shape)) < 1 or last >= len(flat):
        raise ValueError("a tensor does not lie within its storage")
    steps = [stride * flat.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(flat[tensor.offset :], shape, steps).copy()

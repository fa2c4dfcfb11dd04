"""Files of weights, whatever wrote them, as named arrays; and our own form, a folder of two files."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vq_jax.errors import UserError, first_line
from vq_jax.interop.torch_file import read_torch_file

# In a folder: what its weights may be called, the best form first.
_SUFFIXES = (".safetensors", ".msgpack", ".ckpt", ".pt", ".pth", ".bin")
# Of our own form: a config, and arrays by their paths in the variables, such as params/encoder/...
CONFIG, ARRAYS = "config.json", "model.safetensors"


@dataclasses.dataclass(frozen=True)
class Weights:
    """Named arrays from a file.

    Attributes:
      path: the file they are from.
      arrays: name -> array, names of nested trees joined by "." (by "/" in Flax's and our own).
      about: what the config.json beside it says, or {}.
    """

    path: Path
    arrays: dict[str, np.ndarray]
    about: dict[str, Any] = dataclasses.field(default_factory=dict)


def read_weights(path: Path) -> Weights:
    """Reads a file of weights, or a folder with one in it, and runs nothing that is in it.

    The form is told from the file's first bytes: safetensors, a zip or older file of `torch.save`,
    or Flax's msgpack.

    Raises:
      UserError: there is none, there are several, or it cannot be read.
    """
    if path.is_dir():
        about = _read_config(path / CONFIG)
        path = _weights_in(path)
    else:
        about = _read_config(path.parent / CONFIG, only="VQModel")
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from e
    if start[8:9] == b"{":
        arrays = _read_safetensors(path)
    elif start[:2] == b"PK" or start[:1] == b"\x80":
        arrays = _flatten(read_torch_file(path), ".")
    elif start[:1] and (0x81 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF)):
        arrays = _flatten(_read_msgpack(path), "/")
    else:
        raise UserError(
            f"{path} is no file of weights: known are safetensors, torch.save's and Flax's msgpack"
        )
    if not arrays:
        raise UserError(f"{path} holds no arrays")
    # Names are shown on a terminal: nothing in them may steer it.
    return Weights(path, {ascii(name)[1:-1]: array for name, array in arrays.items()}, about)


def _weights_in(folder: Path) -> Path:
    for suffix in _SUFFIXES:
        found = sorted(p for p in folder.iterdir() if p.suffix == suffix and p.is_file())
        if len(found) > 1:
            names = ", ".join(p.name for p in found)
            raise UserError(f"{folder} has several files of weights ({names}): name one")
        if found:
            return found[0]
    raise UserError(f"no file of weights in {folder} (*{', *'.join(_SUFFIXES)})")


def _read_config(path: Path, only: str = "") -> dict[str, Any]:
    """A config.json; {} where there is none. With `only`, {} unless it is of that diffusers class."""
    if not path.exists():
        return {}
    try:
        about = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as e:
        if only:
            return {}
        raise UserError(f"{path} cannot be read as JSON: {first_line(e)}") from e
    if not isinstance(about, dict):
        about = {}
    return about if not only or about.get("_class_name") == only else {}


def _read_safetensors(path: Path, prefix: str = "") -> dict[str, np.ndarray]:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="np") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names if name.startswith(prefix)}
    except Exception as e:
        raise UserError(f"cannot read {path}: {first_line(e)}") from e


def _read_msgpack(path: Path) -> Any:
    from flax import serialization

    try:
        return serialization.msgpack_restore(path.read_bytes())
    except Exception as e:  # whatever a damaged file makes the parser raise
        raise UserError(
            f"{path} is no file of weights that can be read (by its first byte it could be Flax's "
            f"msgpack: {first_line(e)})"
        ) from e


def _flatten(tree: Any, separator: str) -> dict[str, np.ndarray]:
    """The arrays of nested dicts by their joined names; what is no array is left out."""
    arrays: dict[str, np.ndarray] = {}

    def walk(node: Any, prefix: str, depth: int) -> None:
        if isinstance(node, dict) and depth < 32:
            for key, value in node.items():
                if isinstance(key, str) or (isinstance(key, int) and abs(key) < 2**60):
                    walk(value, f"{prefix}{separator}{key}" if prefix else str(key), depth + 1)
        elif isinstance(node, np.ndarray):
            arrays[prefix] = node

    walk(tree, "", 0)
    return arrays


def save_arrays(arrays: dict[str, np.ndarray], path: Path, **about: str) -> None:
    """Writes a safetensors file; nothing half-written is left under its name."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Strided views would be written as they lie in memory.
        whole = {name: np.ascontiguousarray(a).reshape(np.shape(a)) for name, a in arrays.items()}
        save_file(whole, temporary, metadata={"format": "pt", **about})
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # it is made for the owner alone
        temporary.replace(path)
    except (OSError, SafetensorError) as e:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {e}") from e


# --- our own form ---------------------------------------------------------------------------------


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts of arrays (or of shapes) as {"a/b/c": array}."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    found: dict[str, Any] = {}
    for name, branch in tree.items():
        found |= flat(branch, f"{prefix}/{name}" if prefix else str(name))
    return found


def nested(arrays: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`."""
    tree: dict[str, Any] = {}
    for path, array in arrays.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = array
    return tree


def differences(
    arrays: dict[str, Any], shapes: dict[str, Any], called: Callable[[str], str] = str
) -> list[str]:
    """What is missing, left over or of another shape than wanted, a line each.

    Args:
      arrays: by path.
      shapes: arrays or shapes, by path: those that are wanted.
      called: what a path is called in the lines.
    """

    def shape(of: Any) -> tuple[int, ...]:
        return tuple(of.shape)

    lines = []
    for name in sorted(shapes.keys() | arrays.keys()):
        if name not in arrays:
            lines.append(f"missing: {called(name)}, {shape(shapes[name])}")
        elif name not in shapes:
            lines.append(f"left over: {called(name)}, {shape(arrays[name])}")
        elif shape(arrays[name]) != shape(shapes[name]):
            here, there = shape(arrays[name]), shape(shapes[name])
            lines.append(f"of another shape: {called(name)} is {here}, not {there}")
    return lines


def listing(lines: list[str]) -> str:
    """Lines under a sentence, all of them."""
    return "".join(f"\n  {line}" for line in lines)


def holds_arrays(folder: Path) -> bool:
    """Whether a folder is of our own form."""
    return (folder / ARRAYS).is_file()


def read_group(folder: Path, group: str) -> dict[str, Any]:
    """The arrays of one group (the first part of their names) of a folder of our own form, nested;
    {} where there is none."""
    if not holds_arrays(folder):
        return {}
    path = folder / ARRAYS
    return nested(_read_safetensors(path, f"{group}/")).get(group, {})


def read_folder(folder: Path, shapes: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The arrays of a folder of our own form.

    Args:
      folder: that `export` or `import` wrote.
      shapes: nested dicts of arrays or shapes: the groups wanted. Other groups (a discriminator's,
        say) are left where they are.

    Returns:
      the training steps its params have seen; nested dicts of arrays.

    Raises:
      UserError: arrays are missing, left over or of another shape; the text lists all.
    """
    path = folder / ARRAYS
    found: dict[str, np.ndarray] = {}
    for group, tree in shapes.items():
        prefix = f"{group}/" if isinstance(tree, dict) else group
        found |= _read_safetensors(path, prefix)
    if lines := differences(found, flat(shapes)):
        raise UserError(f"{path} does not fit the {CONFIG} beside it:" + listing(lines))
    tree = nested(found)
    return _step(path), {name: tree.get(name, {}) for name in shapes}


def _step(path: Path) -> int:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        text = (file.metadata() or {}).get("step", "")
    return int(text) if text.isdigit() else 0

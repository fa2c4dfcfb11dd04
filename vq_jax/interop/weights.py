"""Files of weights, whatever wrote them, as named arrays; and our own form, a folder of two files."""

import dataclasses
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vq_jax.errors import UserError, first_line
from vq_jax.files import writing
from vq_jax.interop.pickles import Inert
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
        path = _model_in(path)
        about = _read_config(path / CONFIG)
        path = _weights_in(path)
    else:
        about = _read_config(path.parent / CONFIG, only="VQModel")
    arrays = _read_shards(path) if path.suffix == ".json" else _read_file(path)
    if not arrays:
        raise UserError(f"{path} holds no arrays")
    # Names are shown on a terminal: nothing in them may steer it.
    return Weights(path, {ascii(name)[1:-1]: array for name, array in arrays.items()}, about)


def _read_file(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from e
    if start[8:9] == b"{":
        return _read_safetensors(path)
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return _flatten(_one_model(read_torch_file(path), path), ".")
    if start[:1] and (0x81 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF)):
        return _flatten(_read_msgpack(path), "/")
    for beginning, what in (
        (b"version https://git-lfs", "a git-lfs pointer, not the file itself: run git lfs pull"),
        (b"<!doctype", "a web page, not the file that it is about: fetch that again"),
        (b"<html", "a web page, not the file that it is about: fetch that again"),
    ):
        if start.lstrip().lower().startswith(beginning):
            raise UserError(f"{path} is {what}")
    raise UserError(
        f"{path} is no file of weights: known are safetensors, torch.save's and Flax's msgpack"
    )


def _one_model(tree: Any, path: Path) -> Any:
    """What `torch.save` wrote, if it is a dictionary.

    Raises:
      UserError: it is a module pickled whole, or a list.
    """
    if isinstance(tree, Inert):
        raise UserError(
            f"{path} holds a module pickled whole ({tree.of}), which only its own code can open: save "
            "its state_dict() instead"
        )
    if isinstance(tree, list | tuple) and any(isinstance(item, dict) for item in tree):
        raise UserError(f"{path} holds a list of {len(tree)} state dicts: save the one you want")
    return tree


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    """The arrays of several files, by the index beside them (`weight_map`: name -> file)."""
    try:
        names = json.loads(index.read_text())["weight_map"]
        shards = sorted({str(name) for name in names.values()})
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{index} is no index of files of weights: {first_line(e)}") from e
    arrays: dict[str, np.ndarray] = {}
    for shard in shards:
        if Path(shard).name != shard or shard.startswith("."):
            raise UserError(f"{index} names a file outside its folder: {ascii(shard)[:80]}")
        arrays |= _read_file(index.parent / shard)
    if missing := sorted(names.keys() - arrays.keys()):
        raise UserError(f"{index} names {len(missing)} arrays that its files lack: {missing[0]}")
    return arrays


def _model_in(folder: Path) -> Path:
    """The folder itself, or that of the tokenizer in a diffusers pipeline."""
    if not (folder / "model_index.json").is_file():
        return folder
    parts = (folder / name for name in ("vqvae", "vqgan", "movq", "vae"))
    return next((part for part in parts if part.is_dir()), folder)


def _weights_in(folder: Path) -> Path:
    indices = sorted(folder.glob("*.index.json"))
    for suffix in _SUFFIXES:
        found = sorted(p for p in folder.iterdir() if p.suffix == suffix and p.is_file())
        whole = [p for p in found if not re.search(r"-\d{5}-of-\d{5}\.", p.name)]
        index = [p for p in indices if p.name.endswith(f"{suffix}.index.json")]
        if index and not whole:
            return index[0]
        found = whole or found
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

    with writing(path) as temporary:
        # Strided views would be written as they lie in memory.
        whole = {name: np.ascontiguousarray(a).reshape(np.shape(a)) for name, a in arrays.items()}
        try:
            save_file(whole, temporary, metadata={"format": "pt", **about})
        except SafetensorError as e:
            raise UserError(f"cannot write {path}: {e}") from e
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # it is made for the owner alone


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

"""Weight files as dicts of named arrays, and vq_jax's own format: a folder of two files."""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from vq_jax.errors import UserError, first_line
from vq_jax.files import writing
from vq_jax.interop.bits import SCALES, narrow, widen
from vq_jax.interop.pickles import Inert
from vq_jax.interop.torch_file import read_torch_file

# Suffixes of weight files that are looked for in a folder, in order of preference.
SUFFIXES = (".safetensors", ".msgpack", ".ckpt", ".pt", ".pth", ".bin")
INDEX = ".index.json"  # follows the suffix of the shards in the name of their index
SHARD = re.compile(r"-\d{5}-of-\d{5}\.")
PIPELINE_PARTS = ("vqvae", "vqgan", "movq", "vae")  # folders of a diffusers pipeline
# The files of vq_jax's own format: the config, and the arrays. Arrays are named by their paths in
# the variables, such as params/encoder/conv_in/kernel.
CONFIG, ARRAYS = "config.json", "model.safetensors"
_BITS = "bits"  # in the metadata of a file whose params are stored in 16 or 8 bits


@dataclasses.dataclass(frozen=True)
class Weights:
    """Named arrays from a weight file.

    Attributes:
      path: the file.
      arrays: name -> array. Names of nested dicts are joined by "." (by "/" in Flax's files and in
        vq_jax's own format).
      config_json: content of the config.json in the same folder, {} if there is none.
    """

    path: Path
    arrays: dict[str, np.ndarray]
    config_json: dict[str, Any] = dataclasses.field(default_factory=dict)


def read_weights(path: Path) -> Weights:
    """Reads a weight file without running any code that it contains.

    The format is detected from the first bytes: safetensors, `torch.save` (zip or legacy), or
    Flax's msgpack.

    Args:
      path: a weight file, the JSON index of a sharded one, or a folder with exactly one of these.

    Raises:
      UserError: there is no weight file, there are several, or it cannot be read.
    """
    if path.is_dir():
        path = _model_folder(path)
        config_json = _read_config(path / CONFIG)
        path = _weights_in(path)
    else:
        config_json = _read_config(path.parent / CONFIG, only="VQModel")
    arrays = _read_shards(path) if path.suffix == ".json" else _read_file(path)
    if not arrays:
        raise UserError(f"{path} contains no arrays")
    # Names are printed, so escape any terminal control characters in them.
    return Weights(path, {ascii(name)[1:-1]: array for name, array in arrays.items()}, config_json)


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
        (b"version https://git-lfs", "a git-lfs pointer, not the weights: run git lfs pull"),
        (b"<!doctype", "a web page, not the weights: download the file again"),
        (b"<html", "a web page, not the weights: download the file again"),
    ):
        if start.lstrip().lower().startswith(beginning):
            raise UserError(f"{path} is {what}")
    raise UserError(
        f"{path} is not a weight file: use safetensors, a torch.save file or Flax's msgpack"
    )


def _one_model(tree: Any, path: Path) -> Any:
    """Returns the content of a `torch.save` file unless it has no single state dict.

    Raises:
      UserError: it is a pickled module, or a list of state dicts.
    """
    if isinstance(tree, Inert):
        raise UserError(
            f"{path} contains a pickled module ({tree.reference}), which only its own code can "
            "open: save its state_dict() instead"
        )
    if isinstance(tree, list | tuple) and any(isinstance(item, dict) for item in tree):
        raise UserError(
            f"{path} contains a list of {len(tree)} state dicts: save one of them to its own file"
        )
    return tree


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    """Reads a sharded model through its index file (`weight_map`: name -> file)."""
    try:
        names = json.loads(index.read_text())["weight_map"]
        shards = sorted({str(name) for name in names.values()})
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{index} is not an index of weight files: {first_line(e)}") from e
    arrays: dict[str, np.ndarray] = {}
    for shard in shards:
        if Path(shard).name != shard or shard.startswith("."):
            raise UserError(f"{index} names a file outside its folder: {ascii(shard)[:80]}")
        arrays |= _read_file(index.parent / shard)
    if missing := sorted(names.keys() - arrays.keys()):
        raise UserError(
            f"{index} lists {len(missing)} arrays that its files do not contain: {missing[0]}"
        )
    return arrays


def _model_folder(folder: Path) -> Path:
    """Returns the tokenizer's subfolder for a diffusers pipeline, else the folder itself."""
    if not (folder / "model_index.json").is_file():
        return folder
    parts = (folder / name for name in PIPELINE_PARTS)
    return next((part for part in parts if part.is_dir()), folder)


def _weights_in(folder: Path) -> Path:
    """Returns the one weight file, or index of shards, in a folder."""
    found = weight_files(sorted(p.name for p in folder.iterdir() if p.is_file()))
    if len(found) > 1:
        names = ", ".join(found)
        raise UserError(f"{folder} has several weight files ({names}): give one of them")
    if not found:
        raise UserError(f"no weight file in {folder} (*{', *'.join(SUFFIXES)})")
    return folder / found[0]


def weight_files(names: Sequence[str]) -> list[str]:
    """Chooses the weight files among the names of a folder's files.

    Returns:
      those of the first format of `SUFFIXES` that there is: files that are whole; or else the index of shards;
      or else shards without one.
    """
    for suffix in SUFFIXES:
        files = [name for name in names if Path(name).suffix == suffix]
        whole = [name for name in files if not SHARD.search(name)]
        index = [name for name in names if name.endswith(suffix + INDEX)]
        if found := whole or index[:1] or files:
            return found
    return []


def _read_config(path: Path, only: str = "") -> dict[str, Any]:
    """Reads a config.json, {} if there is none.

    Args:
      path: the file.
      only: a diffusers class; any other config.json gives {}. Empty for no restriction.
    """
    if not path.exists():
        return {}
    try:
        config_json = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as e:
        if only:
            return {}
        raise UserError(f"{path} cannot be read as JSON: {first_line(e)}") from e
    if not isinstance(config_json, dict):
        config_json = {}
    return config_json if not only or config_json.get("_class_name") == only else {}


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
    except Exception as e:  # A damaged file can make the parser raise anything.
        raise UserError(
            f"{path} is not a readable weight file (its first byte suggests Flax's msgpack: "
            f"{first_line(e)})"
        ) from e


def _flatten(tree: Any, separator: str) -> dict[str, np.ndarray]:
    """Returns the arrays of nested dicts by their joined names, leaving out all other leaves."""
    # Not flax.traverse_util: an untrusted tree may have keys that are no strings, and any depth.
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


def save_arrays(arrays: dict[str, np.ndarray], path: Path, **metadata: str) -> None:
    """Writes a safetensors file atomically.

    Args:
      arrays: name -> array.
      path: the file to write.
      **metadata: entries for the file's metadata.

    Raises:
      UserError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    with writing(path) as temporary:
        # save_file would write the memory of a strided view in the wrong order.
        whole = {name: np.ascontiguousarray(a).reshape(np.shape(a)) for name, a in arrays.items()}
        try:
            save_file(whole, temporary, metadata={"format": "pt", **metadata})
        except SafetensorError as e:
            raise UserError(f"cannot write {path}: {e}") from e
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # save_file makes it readable for the owner only.


def save_json(content: dict[str, Any], path: Path) -> None:
    """Writes a dict as indented JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n")


# --- vq_jax's own format --------------------------------------------------------------------------


def flat(tree: dict[str, Any]) -> dict[str, Any]:
    """Flattens nested dicts of arrays or shapes to {"a/b/c": array}."""
    return traverse_util.flatten_dict(tree, sep="/")


def flat_numpy(tree: dict[str, Any]) -> dict[str, np.ndarray]:
    """Flattens nested dicts of arrays to {"a/b/c": array}, with the arrays as NumPy's."""
    return {name: np.asarray(array) for name, array in flat(tree).items()}


def nested(arrays: dict[str, Any]) -> dict[str, Any]:
    """Turns {"a/b/c": array} into nested dicts, the inverse of `flat`."""
    return traverse_util.unflatten_dict(arrays, sep="/")


def differences(
    arrays: dict[str, Any], shapes: dict[str, Any], label: Callable[[str], str] = str
) -> list[str]:
    """Lists the arrays that are missing, unexpected or of the wrong shape, one line each.

    Args:
      arrays: the arrays found, by path.
      shapes: the arrays or shapes expected, by path.
      label: function from a path to the name shown in the lines.
    """

    def shape(x: Any) -> tuple[int, ...]:
        return tuple(x.shape)

    lines = []
    for name in sorted(shapes.keys() | arrays.keys()):
        if name not in arrays:
            lines.append(f"missing: {label(name)}, {shape(shapes[name])}")
        elif name not in shapes:
            lines.append(f"unexpected: {label(name)}, {shape(arrays[name])}")
        elif shape(arrays[name]) != shape(shapes[name]):
            found, expected = shape(arrays[name]), shape(shapes[name])
            lines.append(f"wrong shape: {label(name)} is {found}, expected {expected}")
    return lines


def listing(lines: list[str]) -> str:
    """Formats lines as an indented list that follows a sentence."""
    return "".join(f"\n  {line}" for line in lines)


def holds_arrays(folder: Path) -> bool:
    """Returns whether a folder contains arrays in vq_jax's own format."""
    return (folder / ARRAYS).is_file()


def read_group(folder: Path, group: str) -> dict[str, Any]:
    """Reads one group of arrays from a folder in vq_jax's own format.

    Args:
      folder: the folder.
      group: the first part of the arrays' names, such as "discriminator".

    Returns:
      nested dicts of arrays, {} if the folder or the group does not exist.
    """
    if not holds_arrays(folder):
        return {}
    path = folder / ARRAYS
    return nested(_read_safetensors(path, f"{group}/")).get(group, {})


def read_folder(folder: Path, shapes: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Reads the arrays of a folder in vq_jax's own format.

    Args:
      folder: a folder written by `export` or `import_weights`.
      shapes: nested dicts of arrays or shapes, for the groups to read. Other groups, such as the
        discriminator's, are not read.

    Returns:
      the number of training steps; nested dicts of arrays.

    Raises:
      UserError: arrays are missing, unexpected or of the wrong shape; the text lists all of them.
    """
    path = folder / ARRAYS
    found: dict[str, np.ndarray] = {}
    for group, tree in shapes.items():
        prefix = f"{group}/" if isinstance(tree, dict) else group
        found |= _read_safetensors(path, prefix)
    if lines := differences(found, flat(shapes)):
        raise UserError(f"{path} does not match {CONFIG} in the same folder:" + listing(lines))
    try:
        found = widen(found, _read_safetensors(path, f"{SCALES}/"))
    except UserError as e:
        raise UserError(f"{path}: {e}; export it again") from e
    tree = nested(found)
    return _step(path), {name: tree.get(name, {}) for name in shapes}


def write_folder(folder: Path, arrays: dict[str, np.ndarray], step: int, bits: int = 32) -> bool:
    """Writes the arrays of a folder in vq_jax's own format, the inverse of `read_folder`.

    Args:
      folder: the folder.
      arrays: path -> array.
      step: number of training steps.
      bits: of the params; see `bits.narrow`.

    Returns:
      whether fewer bits changed params.

    Raises:
      UserError: a param does not fit, or the file cannot be written.
    """
    if bits == 32:
        save_arrays(arrays, folder / ARRAYS, step=str(step))
        return False
    stored = narrow(arrays, bits)
    opened = widen(stored, stored)
    save_arrays(stored, folder / ARRAYS, step=str(step), **{_BITS: str(bits)})
    return any(not np.array_equal(opened[name], array) for name, array in arrays.items())


def stored_bits(folder: Path) -> int:
    """Returns the bits of the params in a folder of vq_jax's own format: 32, 16 or 8."""
    text = _metadata(folder / ARRAYS).get(_BITS, "")
    return int(text) if text.isdigit() else 32


def _step(path: Path) -> int:
    """Returns the training step in a file's metadata, 0 if it has none."""
    text = _metadata(path).get("step", "")
    return int(text) if text.isdigit() else 0


def _metadata(path: Path) -> dict[str, str]:
    """Returns the metadata of a safetensors file."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return file.metadata() or {}

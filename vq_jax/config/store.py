"""Configs on disk, and the comparison of two configs."""

import difflib
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vq_jax import modalities
from vq_jax.config.check import check
from vq_jax.config.schema import base, base_prior, kind_of, section_name
from vq_jax.errors import UserError, first_line
from vq_jax.files import shipped, write

FILE = "config.json"  # in the folder of a run


def save(config: ConfigDict, path: Path) -> None:
    """Writes a config as JSON."""
    write((json.dumps(config.to_dict(), indent=2) + "\n").encode(), path)


def load(path: Path) -> ConfigDict:
    """Reads a config that `save` wrote, and checks it.

    Fields that are newer than the file get their defaults.

    Raises:
      UserError: there is no such file, or it is not a valid config.
    """
    try:
        saved = _tuples(json.loads(path.read_text()))
        if not ({"model", "quantizer"} <= saved.keys() or "prior" in saved):
            raise UserError(
                f"{path} is not a config of vq_jax: import the weights of another codebase from "
                f"{path.parent} first"
            )
        config = BASES[kind_of(saved)](saved)
        config.update(saved)
    except (FileNotFoundError, NotADirectoryError) as e:
        folder = path.parent
        problem = (
            f"no {path.name} in {folder}" if folder.is_dir() else f"there is no folder {folder}"
        )
        raise UserError(f"{problem}: train there first, or name {_others(folder)}") from e
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror or e}") from e
    except json.JSONDecodeError as e:
        raise UserError(f"{path} is damaged: {first_line(e)}") from e
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(f"{path} is not a config of this version: {first_line(e)}") from e
    check(config)
    return config.lock()


def _others(folder: Path) -> str:
    """Names what a user may have meant instead of a folder: models that ship."""
    known = [path.name for path in shipped()]
    near = difflib.get_close_matches(folder.name, known, n=3)
    if near:
        return f"a model that ships: {' or '.join(near)}"
    return f"another folder, or a model that ships: {', '.join(known)}"


def _base_of_tokenizer(saved: dict[str, Any]) -> ConfigDict:
    return base(
        saved["model"]["name"], section_name(saved["quantizer"]), saved["discriminator"]["name"]
    )


def _base_of_prior(saved: dict[str, Any]) -> ConfigDict:
    if "image" in saved["codes"]:  # the name of `example` before there were modalities
        saved["codes"]["example"] = saved["codes"].pop("image")
    modality = saved.get("modality", "image")
    return base_prior(saved["prior"]["name"], saved["condition"]["name"], modality)


BASES = {"tokenizer": _base_of_tokenizer, "prior": _base_of_prior}


def kind_of_run(workdir: Path) -> str:
    """Returns the kind of model in a run's folder; "tokenizer" if its config cannot be read."""
    try:
        return kind_of(json.loads((workdir / FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return "tokenizer"  # opening it will say what is wrong


def use_data(config: ConfigDict, data: ConfigDict | None) -> None:
    """Replaces a config's `data` by another one, except for what the model was trained with.

    That is the shape of an example, and how it is prepared if other examples would not fit.

    Raises:
      UserError: the data cannot be used for this kind of model.
    """
    if data is None:
        return
    if data.source == "codes" and kind_of(config) != "prior":
        raise UserError(
            "data.source is 'codes', and a tokenizer takes examples: use another source"
        )
    modality = modalities.of(config)
    modalities.check_folder(modality, data)
    fields = modality.shape_fields + modality.kept_fields
    if any(field not in data for field in fields):
        raise UserError(f"this data section is not one of {config.modality}s: use another config")
    with config.unlocked():
        for field in fields:
            data[field] = config.data[field]
        config.data = data


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def differences(a: ConfigDict, b: ConfigDict, prefix: str = "") -> list[str]:
    """Lists the fields whose values differ, as 'optim.lr 0.001 -> 0.002'."""
    found = []
    for field in sorted({*a, *b}):
        old, new = a.get(field), b.get(field)
        if isinstance(old, ConfigDict) and isinstance(new, ConfigDict):
            found += differences(old, new, f"{prefix}{field}.")
        elif old != new:
            found.append(f"{prefix}{field} {old} -> {new}")
    return found

"""Arrays and fields that came with an imported tokenizer and are kept for a later export."""

import json
from pathlib import Path
from typing import Any

from vq_jax.errors import UserError, first_line
from vq_jax.interop.weights import read_group, save_json

# Group of arrays from the original file that vq_jax has no use for, under their original names.
CARRIED = "carried"
# All groups of arrays that may come with an imported tokenizer.
_EXTRA_GROUPS = ("discriminator", "lpips", CARRIED)
# The config.json that came with an imported tokenizer.
ORIGIN = "origin.json"


def read_extra_arrays(folder: Path) -> dict[str, Any]:
    """Reads the arrays that came with an imported tokenizer: group -> nested dicts of arrays."""
    return {group: arrays for group in _EXTRA_GROUPS if (arrays := read_group(folder, group))}


def save_origin(config_json: dict[str, Any], folder: Path) -> None:
    """Saves the content of the config.json that came with an imported tokenizer."""
    save_json(config_json, folder / ORIGIN)


def read_origin(folder: Path) -> dict[str, Any]:
    """Reads what `save_origin` wrote, {} if there is none.

    Raises:
      UserError: the file cannot be read.
    """
    try:
        return json.loads((folder / ORIGIN).read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise UserError(f"{folder / ORIGIN} cannot be read: {first_line(e)}") from e

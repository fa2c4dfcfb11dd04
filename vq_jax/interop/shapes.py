"""What the names and shapes of arrays tell about a model."""

import re
from collections.abc import Mapping

import numpy as np

from vq_jax.errors import UserError

Arrays = Mapping[str, np.ndarray]

# An imported codebook is learned by gradients, and its unused entries are not replaced.
FIXED = {"codebook": "gradient", "revive_below": 0.0}


def count(arrays: Arrays, pattern: str) -> int:
    """Counts the consecutive numbers from 0 that appear as {} in names starting with a pattern."""
    prefix, suffix = (re.escape(part) for part in pattern.split("{}"))
    matches = (re.match(rf"{prefix}(\d{{1,4}}){suffix}", name) for name in arrays)
    numbers = {int(m[1]) for m in matches if m}
    return next(n for n in range(len(numbers) + 1) if n not in numbers)


def shape_of(arrays: Arrays, name: str, rank: int) -> tuple[int, ...]:
    """Returns the shape of an array.

    Raises:
      UserError: there is no such array, or it has another rank.
    """
    if name not in arrays:
        raise UserError(f"there is no array {name}")
    if arrays[name].ndim != rank:
        raise UserError(f"{name} has shape {arrays[name].shape}, expected {rank} dimensions")
    return arrays[name].shape


def entries(arrays: Arrays, name: str = "quantize.embedding.weight") -> dict[str, int]:
    """Returns the fields of a codebook: number of entries and their size.

    Raises:
      UserError: there is no codebook.
    """
    if name not in arrays:
        raise UserError(
            f"there is no codebook ({name}): it may be a KL autoencoder, which is not supported"
        )
    num_codes, dim = shape_of(arrays, name, 2)
    return {"num_codes": num_codes, "dim": dim}

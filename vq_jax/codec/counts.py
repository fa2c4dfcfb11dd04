"""Counts of the training codes, by which the static entropy model codes."""

import io
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vq_jax import files
from vq_jax.errors import UserError
from vq_jax.tokenizer import TrainedTokenizer

FILE = "code_counts.npz"  # in the folder of a tokenizer


def count_codes(tokenizer: TrainedTokenizer, all_codes: Iterable[np.ndarray]) -> np.ndarray:
    """Counts each code in arrays of codes [..., *code_shape]: int64 [levels, num_codes]."""
    levels, num_codes = tokenizer.codes.books, tokenizer.codes.num_codes
    counts = np.zeros((levels, num_codes), np.int64)
    for codes in all_codes:
        for level, codes_N in enumerate(np.asarray(codes).reshape(-1, levels).T):
            counts[level] += np.bincount(codes_N, minlength=num_codes)
    return counts


def save(folder: Path, tokenizer: TrainedTokenizer, counts: np.ndarray) -> None:
    """Writes counts into the tokenizer's folder."""
    fingerprint = np.frombuffer(tokenizer.fingerprint, np.uint8)
    file = io.BytesIO()
    np.savez_compressed(file, counts=counts, fingerprint=fingerprint)
    files.write(file.getvalue(), folder / FILE)


def read(folder: Path, tokenizer: TrainedTokenizer) -> np.ndarray | None:
    """Reads the counts in a tokenizer's folder; None if there are none, or they are of other codes.

    Raises:
      UserError: the file cannot be read.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as found:
            counts, fingerprint = found["counts"], found["fingerprint"].tobytes()
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise UserError(f"{path} cannot be read ({e}): remove it; compress counts again") from e
    shape = (tokenizer.codes.books, tokenizer.codes.num_codes)
    if counts.dtype != np.int64 or (counts < 0).any():
        raise UserError(f"{path} holds no counts: remove it; compress counts again")
    if counts.shape != shape or fingerprint != tokenizer.fingerprint:
        return None
    return counts

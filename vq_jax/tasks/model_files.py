"""Trained models as named arrays, and the other files in a model's folder."""

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vq_jax.codec import counts
from vq_jax.interop.extras import read_extra_arrays, read_origin, save_origin
from vq_jax.interop.weights import flat_numpy
from vq_jax.prior import TrainedPrior
from vq_jax.runs import in_one_file
from vq_jax.tokenizer import TrainedTokenizer

Model = TrainedTokenizer | TrainedPrior


def own_arrays(model: Model, folder: Path) -> tuple[ConfigDict, dict[str, np.ndarray], int]:
    """Converts a trained model to vq_jax's own format.

    Args:
      model: the model.
      folder: the folder it was loaded from, which may have extra arrays of an imported tokenizer.

    Returns:
      the config; name -> array; the number of training steps.
    """
    if isinstance(model, TrainedPrior):
        config = model.config.copy_and_resolve_references()
        with config.unlocked():
            if "scan" in config.prior:
                config.prior.scan = False  # A loaded prior has one tree of params per layer.
        fingerprint = np.frombuffer(model.tokenizer.fingerprint, np.uint8)
        return config, flat_numpy({"params": model.params, "fingerprint": fingerprint}), model.step
    trees: dict[str, Any] = dict(model.variables)
    trees |= extra_arrays(folder)
    return model.config, flat_numpy(trees), model.step


def extra_arrays(folder: Path) -> dict[str, Any]:
    """Reads the arrays that came with an imported tokenizer.

    Returns:
      group -> nested dicts of arrays; {} if the tokenizer has been trained further since.
    """
    return read_extra_arrays(folder) if in_one_file(folder) else {}


def copy_other_files(model: Model, source: Path, target: Path) -> None:
    """Copies the files beside a model's arrays.

    These are the counts of codes for entropy coding, and the config.json of an imported tokenizer.

    Args:
      model: the model loaded from `source`.
      source: the model's folder.
      target: the folder to write to.
    """
    if origin := read_origin(source):
        save_origin(origin, target)
    if isinstance(model, TrainedTokenizer) and (found := counts.read(source, model)) is not None:
        counts.save(target, model, found)

"""What each model of the page can do, and models opened once."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vq_jax import codec, modalities, runs
from vq_jax import config as configs
from vq_jax.errors import UserError
from vq_jax.prior import TrainedPrior


@dataclasses.dataclass(frozen=True)
class Described:
    """What the config of a model says.

    Attributes:
      name: shown on the page.
      folder: of the model.
      kind: "tokenizer" or "prior".
      modality: name of its kind of data.
      condition: of a prior: "none", "upscale" or "restore".
      config: its config.
    """

    name: str
    folder: Path
    kind: str
    modality: str
    condition: str
    config: Any


def described(folder: Path) -> Described:
    """Describes a model from its config alone."""
    config = configs.load(folder / configs.FILE)
    kind = configs.kind_of(config)
    condition = config.condition.name if kind == "prior" else "none"
    return Described(folder.name, folder, kind, modalities.of(config).name, condition, config)


def served(folder: Path) -> list[Described]:
    """Describes the model in a folder, and the tokenizer of a prior; or all models in its folders.

    Raises:
      UserError: there is no model.
    """
    folder = runs.find(folder)
    if (folder / configs.FILE).is_file():
        found = [described(folder)]
        if found[0].kind == "prior" and not runs.is_built_in(runs.tokenizer_folder(folder)):
            found.append(described(runs.tokenizer_folder(folder)))
        return found
    folders = sorted(path.parent for path in folder.glob(f"*/{configs.FILE}"))
    usable = [f for f in folders if runs.in_one_file(f) or runs.has_checkpoints(f)]
    if not usable:
        raise UserError(f"{folder} holds no trained model: give workdir a run, or a folder of runs")
    return [described(one) for one in usable]


def among(
    models: Sequence[Described], kind: str, modality: str, condition: str = "none"
) -> list[Described]:
    """Returns the models of a kind, of a modality and with a condition."""
    wanted = (kind, modality, condition)
    return [m for m in models if (m.kind, m.modality, m.condition) == wanted]


@functools.cache
def codec_of(folder: Path) -> codec.Codec:
    """Opens the codec of a tokenizer, or of a prior."""
    return codec.load(folder)


@functools.cache
def prior_of(folder: Path) -> TrainedPrior:
    """Opens a prior."""
    return runs.load_prior(folder)


def chosen(models: Sequence[Described], name: str) -> Described:
    """Returns the model that a menu names."""
    return next(m for m in models if m.name == name)


def tokens(opened: codec.Codec, x: Any) -> np.ndarray:
    """Encodes a raw example of any size to codes int32 [*grid, *code_shape]."""
    (codes,) = opened.tiler.encode([x])
    return np.asarray(codes)

"""What each model of the page can do, and models opened once."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vq_jax import codec, modalities, runs
from vq_jax import config as configs
from vq_jax.console import stderr
from vq_jax.errors import UserError
from vq_jax.models.priors import sees_later
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

    @property
    def integers(self) -> bool:
        """Whether its codes are the integers of a codec with 100 qualities."""
        return self.kind == "tokenizer" and self.config.quantizer.name == "integer"

    @property
    def levels(self) -> int:
        """Number of levels of a residual tokenizer, which may keep fewer; otherwise 1."""
        residual = self.kind == "tokenizer" and self.config.quantizer.name == "residual"
        return int(self.config.quantizer.levels) if residual else 1

    @property
    def fills_gaps(self) -> bool:
        """Whether it is a prior that sees what comes after a gap."""
        return self.kind == "prior" and sees_later(configs.make_prior(self.config))


def described(folder: Path) -> Described:
    """Describes a model from its config alone."""
    config = configs.load(folder / configs.FILE)
    kind = configs.kind_of(config)
    condition = config.condition.name if kind == "prior" else "none"
    return Described(folder.name, folder, kind, modalities.of(config).name, condition, config)


def served(folder: Path) -> list[Described]:
    """Describes the model in a folder, and the tokenizer of a prior; or all models in its folders.

    Of a folder of runs, those that cannot be opened are left out, and named.

    Raises:
      UserError: there is no trained model.
    """
    folder = runs.find(folder)
    if not folder.exists():
        described(folder)  # which says what else there is
    if (folder / configs.FILE).is_file():
        if not _is_trained(folder):
            raise UserError(f"{folder} holds no trained model yet")
        found = [described(folder)]
        if found[0].kind == "prior" and not runs.is_built_in(runs.tokenizer_folder(folder)):
            found.append(described(runs.tokenizer_folder(folder)))
        return found
    found = []
    for path in sorted(folder.glob(f"*/{configs.FILE}")):
        if not _is_trained(path.parent):
            continue
        try:
            found.append(described(path.parent))
        except UserError as e:
            stderr(f"{path.parent} is left out: {e}")
    if not found:
        raise UserError(f"{folder} holds no trained model: give workdir a run, or a folder of runs")
    return found


def _is_trained(folder: Path) -> bool:
    return runs.in_one_file(folder) or runs.has_checkpoints(folder)


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
    """Returns the model that a menu names.

    Raises:
      UserError: there is none of this name.
    """
    for model in models:
        if model.name == name:
            return model
    raise UserError("there is no such model: choose one")


def tokens(opened: codec.Codec, x: Any) -> np.ndarray:
    """Encodes a raw example of any size to codes int32 [*grid, *code_shape]."""
    (codes,) = opened.tiler.encode([x])
    return np.asarray(codes)

"""Modalities: one file for each kind of data, and the table of their names."""

from collections.abc import Mapping
from typing import Any

from vq_jax.data.sources import Splits, open_codes, open_tfds
from vq_jax.errors import UserError
from vq_jax.modalities.base import Modality, Network
from vq_jax.modalities.image import Image
from vq_jax.modalities.text import Text
from vq_jax.modalities.vector import Vector
from vq_jax.modalities.video import Video

MODALITIES: dict[str, Modality] = {
    "image": Image(),
    "text": Text(),
    "vector": Vector(),
    "video": Video(),
}


def of(config: Mapping[str, Any]) -> Modality:
    """Returns the modality of a config."""
    return MODALITIES[config["modality"]]


def data_suffixes() -> frozenset[str]:
    """Returns the suffixes of the files of all modalities."""
    return frozenset().union(
        *({one.suffix} | (one.suffixes or set()) for one in MODALITIES.values())
    )


def check_folder(modality: Modality, data: Any) -> None:
    """Raises UserError if a section `data` names a folder that its source does not read."""
    reads_folder = modality.folder_sources | {"codes"}
    if data.folder and data.source not in reads_folder:
        names = " or ".join(repr(name) for name in sorted(reads_folder))
        raise UserError(
            f"data.folder is {data.folder}, and data.source {data.source!r} reads no folder: set "
            f"data.source to {names}"
        )


def open_source(config: Mapping[str, Any]) -> Splits:
    """Opens, and at first use prepares, the data set of `config.data`.

    Raises:
      UserError: it cannot be opened; the message says what to do.
    """
    modality, data, seed = of(config), config["data"], config["seed"]
    if data.source.startswith("tfds:"):
        return open_tfds(data.source.removeprefix("tfds:"), data, seed, modality.feature)
    if data.source == "codes":  # only for priors
        return open_codes(data, seed)
    return modality.sources()[data.source](data, seed)


__all__ = [
    "MODALITIES",
    "Modality",
    "Network",
    "check_folder",
    "data_suffixes",
    "of",
    "open_source",
]

"""Feature vectors: float32 [D], from .npy, .npz and parquet files; their codes are semantic IDs."""

import contextlib
import dataclasses
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vq_jax import losses, metrics
from vq_jax.bounds import Bounds
from vq_jax.console import stderr
from vq_jax.data.sources import OpenSource, Source, Splits, Subset, embedded, hold_out
from vq_jax.data.vectors import SUFFIXES, Table, check_finite, read_table, read_tables
from vq_jax.errors import UserError
from vq_jax.files import STDIO, cache_folder, writing
from vq_jax.modalities.base import Loss, Modality, Network, Rows
from vq_jax.modalities.image_networks import efficientnet_network

_SHOWN = 256  # numbers of a vector in a picture, at most
_EMOJI_DIM = 1280
# Of the cached features of emoji: changes when the emoji, the network or the names do.
_EMOJI_VERSION = 2


@dataclasses.dataclass
class VectorData:
    """Fields of `config.data` for vectors."""

    dim: Annotated[int, Bounds(1)] = 1280  # numbers a vector has
    normalize: bool = False  # scale every vector to length 1


# --- sources ---------------------------------------------------------------------------------------


def open_vectors(data: ConfigDict, seed: int) -> Splits:
    """Opens the file, or the files of the folder, that `data.folder` names.

    Vectors of one id are in one split.
    """
    if not data.folder:
        raise UserError("data.source='vectors' needs data.folder, a file or folder of vectors")
    table = read_tables(Path(data.folder))
    _check_dim(table.dim, data, data.folder)
    train, val = hold_out([str(name) for name in table.ids], data.val_fraction, seed)
    return Splits(Subset(table, train), Subset(table, val), table.class_names)


def _check_dim(dim: int, data: ConfigDict, place: Any) -> None:
    if dim != data.dim:
        raise UserError(
            f"the vectors in {place} have {dim} numbers, and data.dim is {data.dim}: set data.dim={dim}"
        )


def _emoji_features(data: ConfigDict, seed: int) -> Splits:
    """EfficientNet-lite0's features [1280] of the embedded emoji, with their names and categories."""
    _check_dim(_EMOJI_DIM, data, "emoji_features")
    splits = embedded("Emoji")(data, seed)
    parts: dict[str, Source] = {}
    for split, source in (("train", splits.train), ("val", splits.val)):
        path = cache_folder() / f"emoji_features_{_EMOJI_VERSION}_{split}.npz"
        try:
            with np.load(path, allow_pickle=False) as arrays:
                vectors, ids, labels = arrays["vectors"], arrays["ids"], arrays["labels"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            vectors, ids, labels = _compute_features(source)
            # A full or read-only disk only costs computing them again.
            with contextlib.suppress(UserError), writing(path) as temporary:
                np.savez(temporary, vectors=vectors, ids=ids, labels=labels)
        parts[split] = Table(vectors, ids.tolist(), labels, splits.class_names)
    return Splits(parts["train"], parts["val"], splits.class_names)


def _compute_features(source: Source) -> list[np.ndarray]:
    from vq_jax.data.builders import emoji_names  # imports TFDS, which takes a while

    network = efficientnet_network()
    stderr(f"computing the features of {len(source)} emoji, once")
    examples = [example for i in range(len(source)) if (example := source[i]) is not None]
    return [
        network.features(np.stack([example["x"] for example in examples])),
        np.array(emoji_names([example["id"] for example in examples])),
        np.array([example["label"] for example in examples], np.int32),
    ]


# --- the modality ----------------------------------------------------------------------------------


def cosine_distance(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """One minus the cosine similarity of vectors [..., D], float32 [...]."""
    return 1.0 - metrics.cosine_similarity(prediction, target)


class Vector(Modality):
    """The modality of feature vectors."""

    name = noun = unit = "vector"
    axes = ("D",)
    suffixes = SUFFIXES
    suffix = ".npy"
    writes = frozenset([".npy"])
    feature = "vector"
    discriminator = "mlp"
    data_fields = VectorData
    shape_fields = ("dim",)
    kept_fields = ("normalize",)
    folder_sources = frozenset(["vectors"])
    losses: ClassVar[Mapping[str, Loss]] = {
        "l2": losses.l2,
        "l1": losses.l1,
        "cosine": cosine_distance,
    }
    rows: ClassVar[Rows] = {
        "relative_error": ("squared error over variance", ".4f"),
        "cosine_similarity": ("cosine similarity", ".4f"),
        "unique_share": ("items with a code of their own", ".1%"),
        "largest_collision": ("items that share one code, at most", ",d"),
        "frechet": ("Frechet distance of the vectors", ".2f"),
    }

    def spec(self, data: ConfigDict) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((data.dim,), jnp.float32)

    def units(self, shape: Sequence[int]) -> int:
        return 1

    def sources(self) -> Mapping[str, OpenSource]:
        return {"emoji_features": _emoji_features, "vectors": open_vectors}

    def prepare(
        self, data: ConfigDict, train: bool, condition: Callable | None = None
    ) -> Callable[..., dict[str, Any]]:
        return partial(_prepare, normalize=data.normalize)

    def preparation(self, data: ConfigDict) -> str:
        return "scaled to length 1" if data.normalize else "not scaled"

    def metrics(self, config: ConfigDict) -> Callable[[Any, Any], dict[str, Any]]:
        """Squared error, cosine similarity, and the moments of each dimension, in float64."""

        @jax.jit
        def per_vector(x, y):
            return {
                "squared_error": jnp.square(x - y).mean(-1),
                "cosine_similarity": metrics.cosine_similarity(x, y),
            }

        def with_moments(x, y):
            wide = np.asarray(x, np.float64)
            return per_vector(x, y) | {"mean": wide, "mean_square": np.square(wide).mean(-1)}

        return with_moments

    def summarize(self, means: dict[str, np.ndarray]) -> dict[str, float]:
        variance = float(means["mean_square"] - np.square(means["mean"]).mean())
        figures = {"cosine_similarity": float(means["cosine_similarity"])}
        if variance > 1e-12:  # undefined for equal vectors
            figures["relative_error"] = float(means["squared_error"]) / variance
        return figures

    def code_figures(self, codes: np.ndarray) -> dict[str, float]:
        unique, largest = metrics.collisions(codes.reshape(len(codes), -1))
        return {"unique_share": unique, "largest_collision": largest}

    def networks(self, inception: str = "", protocol: str = "adm") -> list[Network]:
        heading, _ = self.rows["frechet"]
        own = Network("frechet", heading, "the vectors themselves", "", lambda x: np.asarray(x))
        return [*super().networks(inception, protocol), own]

    def problem(self, x: jax.Array) -> str | None:
        return None if bool(jnp.isfinite(x).all()) else "vectors have NaN or infinite numbers"

    def to_raw(self, x: Any) -> np.ndarray:
        return np.asarray(x, np.float32)

    def from_raw(self, raw: np.ndarray) -> np.ndarray:
        return np.asarray(raw, np.float32)

    def read(self, path: Path, data: ConfigDict) -> np.ndarray:
        """Vectors float32 [N, D]."""
        if path == STDIO:
            raise UserError("vectors are not read from standard input: give a file")
        vectors = np.asarray(read_table(path).vectors, np.float32)
        _check_dim(vectors.shape[1], data, path)
        if len(bad := np.flatnonzero(~np.isfinite(vectors).all(axis=1))):
            check_finite(vectors[bad[0]], f"{bad[0]} of {path}")
        return _normalized(vectors) if data.normalize else vectors

    def write(self, raw: np.ndarray, path: Path) -> None:
        if path.suffix.lower() not in self.writes | {""}:
            raise UserError(f"cannot write {path}: vectors are written as .npy")
        with writing(path) as temporary, temporary.open("wb") as file:
            np.save(file, raw)

    def preview(self, path: Path, *rows: np.ndarray) -> None:
        """Draws vectors as strips of colour, those of one column below each other."""
        from matplotlib import colormaps

        from vq_jax.data.images import save_image

        wide = max(map(len, rows))
        shown = np.full((wide, len(rows), min(rows[0].shape[1], _SHOWN)), np.nan)
        for i, row in enumerate(rows):
            shown[: len(row), i] = row[:, :_SHOWN]
        low, high = np.nanpercentile(shown, [1, 99])
        scaled = np.clip((shown - low) / max(high - low, 1e-9), 0, 1)
        strips = (colormaps["viridis"](np.nan_to_num(scaled))[..., :3] * 255).astype(np.uint8)
        strips[np.isnan(scaled)] = 255
        strips = np.repeat(np.repeat(strips, 8, axis=1), 3, axis=2)
        gap = np.full((wide, 6, *strips.shape[2:]), 255, np.uint8)
        save_image(np.concatenate([strips, gap], axis=1).reshape(-1, *strips.shape[2:]), path)


def _normalized(x: np.ndarray) -> np.ndarray:
    """Scales vectors [..., D] to length 1."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _prepare(
    example: dict[str, Any], rng: np.random.Generator | None = None, *, normalize: bool
) -> dict[str, Any]:
    x = np.asarray(example["x"], np.float32)
    x = _normalized(x) if normalize else x
    return {"x": x, "label": np.int32(example["label"])}

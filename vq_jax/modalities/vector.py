"""Feature vectors: float32 [D], from .npy, .npz and parquet files; their codes are semantic IDs."""

import dataclasses
import zipfile
from collections import Counter
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
from vq_jax.data.builders import emoji_names
from vq_jax.data.sources import OpenSource, Source, Splits, Subset, embedded, find_files, hold_out
from vq_jax.errors import UserError, first_line
from vq_jax.files import STDIO, cache_folder, free_memory, writing
from vq_jax.modalities.base import Loss, Modality, Network, Rows
from vq_jax.modalities.image_networks import efficientnet_network

SUFFIXES = frozenset([".npy", ".npz", ".parquet"])
# Columns of a parquet file, and arrays of an .npz, that hold vectors, names and classes.
_VECTORS = ("vector", "vectors", "embedding", "embeddings", "features", "x")
_IDS = ("id", "ids", "item", "item_id", "name")
_LABELS = ("label", "labels", "category", "class")
_SHOWN = 256  # numbers of a vector in a picture, at most
_EMOJI_DIM = 1280


@dataclasses.dataclass
class VectorData:
    """Fields of `config.data` for vectors."""

    dim: Annotated[int, Bounds(1)] = 1280  # numbers a vector has
    normalize: bool = False  # scale every vector to length 1


@dataclasses.dataclass(frozen=True)
class Table:
    """Vectors with names and classes; random access to examples, as a `Source` has it.

    Attributes:
      vectors: float [N, D], perhaps mapped from a file.
      ids: N names.
      labels: class numbers, int32 [N].
      class_names: by class number.
    """

    vectors: np.ndarray
    ids: Sequence[Any]
    labels: np.ndarray
    class_names: tuple[str, ...]
    always_readable: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, index: int) -> dict[str, Any]:
        x = np.asarray(self.vectors[index], np.float32)
        if not np.isfinite(x).all():
            raise UserError(f"vector {self.ids[index]} has values that are NaN or infinite")
        return {
            "x": x,
            "label": int(self.labels[index]),
            "id": self.ids[index],
        }


# --- files -----------------------------------------------------------------------------------------


def read_table(path: Path) -> Table:
    """Reads vectors, and if there are any their names and classes, from a file.

    A .npy file is an array [N, D]. An .npz file has such an array, and may have arrays of names and
    classes. A parquet file has a column of lists, or else its number columns are the vectors.

    Raises:
      UserError: it cannot be read, or has no vectors.
    """
    try:
        return _READERS[path.suffix.lower()](path)
    except KeyError as e:
        known = " ".join(sorted(SUFFIXES))
        raise UserError(f"{path} is no file of vectors: use one of {known}") from e
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, MemoryError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else first_line(e)
        raise UserError(f"cannot read {path}: {reason}") from e


def _table(path: Path, vectors: np.ndarray | None, ids: Any = None, labels: Any = None) -> Table:
    if vectors is not None and vectors.ndim == 1 and vectors.dtype.kind == "f":
        vectors = vectors[None]
    if vectors is None or vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
        found = "none" if vectors is None else f"{vectors.dtype} {vectors.shape}"
        raise UserError(f"{path} has no array of numbers [N, D] (found: {found})")
    count = len(vectors)
    if not count:
        raise UserError(f"{path} has no vectors: its array has the shape {vectors.shape}")
    for name, column in (("ids", ids), ("labels", labels)):
        if column is not None and len(column) != count:
            raise UserError(f"{path} has {count} vectors and {len(column)} {name}")
    if labels is None:
        return Table(vectors, range(count) if ids is None else ids, np.zeros(count, np.int32), ())
    # Sorted as numbers if all are numbers, otherwise as text.
    numeric = all(isinstance(label, int) for label in labels)
    names = sorted(set(labels if numeric else map(str, labels)))
    numbers = {str(name): i for i, name in enumerate(names)}
    labels = np.array([numbers[str(label)] for label in labels], np.int32)
    return Table(vectors, range(count) if ids is None else ids, labels, tuple(map(str, names)))


def _check_memory(nbytes: int) -> None:
    """Raises ValueError for contents that do not fit into the free memory."""
    if nbytes > 2**28 and 3 * nbytes > free_memory():  # of the arrays, their copies and batches
        raise ValueError(
            f"its contents take {nbytes / 2**30:.1f} GiB, too much for the free memory"
        )


def _read_npy(path: Path) -> Table:
    return _table(path, np.load(path, mmap_mode="r", allow_pickle=False))


def _read_npz(path: Path) -> Table:
    with zipfile.ZipFile(path) as archive:
        _check_memory(sum(entry.file_size for entry in archive.infolist()))
    with np.load(path, allow_pickle=False) as arrays:
        names = {name.lower(): name for name in arrays.files}

        def first(known: Sequence[str]) -> np.ndarray | None:
            found = next((names[name] for name in known if name in names), None)
            return None if found is None else arrays[found]

        vectors = first(_VECTORS)
        if vectors is None and len(names) == 1:
            vectors = arrays[arrays.files[0]]
        ids, labels = first(_IDS), first(_LABELS)
    return _table(
        path,
        vectors,
        None if ids is None else ids.tolist(),
        None if labels is None else labels.tolist(),
    )


def _read_parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        groups = pq.ParquetFile(path).metadata
        _check_memory(
            sum(groups.row_group(i).total_byte_size for i in range(groups.num_row_groups))
        )
        table = pq.read_table(path)
    except (pa.ArrowException, NotImplementedError) as e:
        raise ValueError(first_line(e)) from e
    names = {name.lower(): name for name in table.column_names}

    def first(known: Sequence[str]) -> list[Any] | None:
        found = next((names[name] for name in known if name in names), None)
        return None if found is None else table[found].to_pylist()

    ids, labels = first(_IDS), first(_LABELS)
    types = {field.name: field.type for field in table.schema}
    lists = [
        name
        for name, kind in types.items()
        if pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
    ]
    known = [names[name] for name in _VECTORS if names.get(name) in lists] or lists
    if known:
        column = table[known[0]].combine_chunks()
        lengths = set(column.value_lengths().to_pylist()) if column.null_count == 0 else {None}
        if len(lengths) != 1 or None in lengths:
            raise ValueError(
                f"the lists of column {known[0]!r} have different lengths, or some none"
            )
        flat = column.flatten().to_numpy(zero_copy_only=False)
        vectors = flat.reshape(len(table), lengths.pop())
    else:
        used = {names[name] for name in (*_IDS, *_LABELS) if name in names}
        numbers = [
            name
            for name, kind in types.items()
            if name not in used and (pa.types.is_floating(kind) or pa.types.is_integer(kind))
        ]
        if not numbers:
            raise ValueError("it has neither a column of lists nor columns of numbers")
        vectors = np.stack([table[name].to_numpy() for name in numbers], axis=1)
    return _table(path, vectors, ids, labels)


_READERS: dict[str, Callable[[Path], Table]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".parquet": _read_parquet,
}


def _joined(tables: Sequence[Table], paths: Sequence[Path]) -> Table:
    """One table of several; class numbers are by name, and ids without a column count on."""
    if len(tables) == 1:
        return tables[0]
    sizes = {table.vectors.shape[1] for table in tables}
    if len(sizes) > 1:
        raise UserError(f"the files in {paths[0].parent} have vectors of different sizes: {sizes}")
    names = sorted({name for table in tables for name in table.class_names})
    labels = [
        [names.index(table.class_names[i]) if table.class_names else 0 for i in table.labels]
        for table in tables
    ]
    plain = all(isinstance(table.ids, range) for table in tables)
    count = sum(map(len, tables))
    return Table(
        np.concatenate([table.vectors for table in tables]),
        range(count) if plain else [one for table in tables for one in table.ids],
        np.concatenate([np.asarray(part, np.int32) for part in labels]),
        tuple(names),
    )


# --- sources ---------------------------------------------------------------------------------------


def _split(table: Table, data: ConfigDict, seed: int, place: Any) -> Splits:
    if table.vectors.shape[1] != data.dim:
        size = table.vectors.shape[1]
        raise UserError(
            f"the vectors in {place} have {size} numbers, and data.dim is {data.dim}: set data.dim={size}"
        )
    # Vectors of one item stay on one side.
    train, val = hold_out([str(name) for name in table.ids], data.val_fraction, seed)
    return Splits(Subset(table, train), Subset(table, val), table.class_names)


def open_vectors(data: ConfigDict, seed: int) -> Splits:
    """Opens the file, or the files of the folder, that `data.folder` names."""
    if not data.folder:
        raise UserError("data.source='vectors' needs data.folder, a file or folder of vectors")
    path = Path(data.folder)
    paths = find_files(path, SUFFIXES, "vectors") if path.is_dir() else [path]
    return _split(_joined([read_table(p) for p in paths], paths), data, seed, path)


def _emoji_features(data: ConfigDict, seed: int) -> Splits:
    """EfficientNet-lite0's features [1280] of the embedded emoji, with their names and categories."""
    if data.dim != _EMOJI_DIM:
        raise UserError(f"data.dim is {data.dim}: the features of emoji have {_EMOJI_DIM} numbers")
    splits = embedded("Emoji")(data, seed)
    names = splits.class_names
    parts: dict[str, Source] = {}
    for split, source in (("train", splits.train), ("val", splits.val)):
        path = cache_folder() / f"emoji_features_2_{split}.npz"
        if not path.exists():
            _write_features(source, path)
        with np.load(path, allow_pickle=False) as arrays:
            vectors, ids, labels = (arrays[name] for name in ("vectors", "ids", "labels"))
        parts[split] = Table(vectors, ids.tolist(), labels, names)
    return Splits(parts["train"], parts["val"], names)


def _write_features(source: Source, path: Path) -> None:
    network = efficientnet_network()
    stderr(f"computing the features of {len(source)} emoji, once")
    examples = [example for i in range(len(source)) if (example := source[i]) is not None]
    with writing(path) as temporary:
        np.savez(
            temporary,
            vectors=network.features(np.stack([example["x"] for example in examples])),
            ids=np.array(emoji_names([example["id"] for example in examples])),
            labels=np.array([example["label"] for example in examples], np.int32),
        )


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
    feature = "vector"
    data_fields = VectorData
    shape_fields = ("dim",)
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

    def variants(
        self,
        example: dict[str, Any],
        data: ConfigDict,
        seed: Sequence[int],
        flips: bool,
        crops: int,
    ) -> list[np.ndarray]:
        if flips or crops:
            raise UserError("flips and crops are for images: vectors have none")
        return [_prepare(example, normalize=data.normalize)["x"]]

    def preparation(self, data: ConfigDict) -> str:
        return "scaled to length 1" if data.normalize else "as they are"

    def metrics(self, config: ConfigDict) -> Callable[[Any, Any], dict[str, jax.Array]]:
        """Squared error, cosine similarity, and the moments of each dimension."""

        @jax.jit
        def per_vector(x, y):
            return {
                "squared_error": jnp.square(x - y).mean(-1),
                "cosine_similarity": metrics.cosine_similarity(x, y),
                "mean": x,
                "mean_square": jnp.square(x).mean(-1),
            }

        return per_vector

    def summarize(self, means: dict[str, np.ndarray]) -> dict[str, float]:
        variance = float(means["mean_square"] - np.square(means["mean"]).mean())
        figures = {"cosine_similarity": float(means["cosine_similarity"])}
        if variance > 1e-12:  # undefined for equal vectors
            figures["relative_error"] = float(means["squared_error"]) / variance
        return figures

    def code_figures(self, codes: np.ndarray) -> dict[str, float]:
        items = Counter(map(bytes, np.ascontiguousarray(codes.reshape(len(codes), -1))))
        return {
            "unique_share": sum(n == 1 for n in items.values()) / len(codes),
            "largest_collision": max(items.values()),
        }

    def networks(self, inception: str = "", protocol: str = "adm") -> list[Network]:
        if inception:
            raise UserError("inception is for FID of images: vectors have none")
        heading, _ = self.rows["frechet"]
        return [Network("frechet", heading, "as they are", "identity", lambda raw: raw)]

    def to_raw(self, x: Any) -> np.ndarray:
        return np.asarray(x, np.float32)

    def from_raw(self, raw: np.ndarray) -> np.ndarray:
        return np.asarray(raw, np.float32)

    def read(self, path: Path, data: ConfigDict) -> np.ndarray:
        """Vectors float32 [N, D]."""
        if path == STDIO:
            raise UserError("vectors are not read from standard input: give a file")
        vectors = np.asarray(read_table(path).vectors, np.float32)
        if vectors.shape[1] != data.dim:
            raise UserError(f"{path} has vectors of {vectors.shape[1]} numbers, not {data.dim}")
        return _normalized(vectors) if data.normalize else vectors

    def write(self, raw: np.ndarray, path: Path) -> None:
        if path.suffix.lower() not in (".npy", ""):
            raise UserError(f"cannot write {path}: vectors are written as .npy")
        with writing(path) as temporary, temporary.open("wb") as file:
            np.save(file, raw)

    def side_by_side(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        raise UserError("side_by_side is for images: vectors have none")

    def preview(self, path: Path, *rows: np.ndarray) -> None:
        """Draws vectors as strips of colour, the rows of one column below each other."""
        from matplotlib import colormaps

        from vq_jax.data.images import save_image

        shown = np.stack(rows, axis=1)[:, :, :_SHOWN]  # [N, rows, D]
        low, high = np.percentile(shown, [1, 99])
        scaled = np.clip((shown - low) / max(high - low, 1e-9), 0, 1)
        strips = (colormaps["viridis"](scaled)[..., :3] * 255).astype(np.uint8)
        strips = np.repeat(np.repeat(strips, 8, axis=1), 3, axis=2)
        gap = np.full((len(strips), 6, *strips.shape[2:]), 255, np.uint8)
        save_image(np.concatenate([strips, gap], axis=1).reshape(-1, *strips.shape[2:]), path)


def _normalized(x: np.ndarray) -> np.ndarray:
    """Vectors [..., D] scaled to length 1."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _prepare(
    example: dict[str, Any], rng: np.random.Generator | None = None, *, normalize: bool
) -> dict[str, Any]:
    x = np.asarray(example["x"], np.float32)
    x = _normalized(x) if normalize else x
    return {"x": x, "label": np.int32(example["label"])}

"""Files of feature vectors: .npy, .npz and parquet, with names and classes of their rows."""

import bisect
import dataclasses
import itertools
import math
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vq_jax.data.sources import find_files
from vq_jax.errors import UserError, first_line
from vq_jax.files import free_memory

# Columns of a parquet file, and arrays of an .npz, that hold vectors, names and classes.
_VECTORS = ("vector", "vectors", "embedding", "embeddings", "features", "x")
_IDS = ("id", "ids", "item", "item_id", "name")
_LABELS = ("label", "labels", "category", "class")
_BATCH_ROWS = 4096  # of a parquet file, read at a time


@dataclasses.dataclass
class Table:
    """The vectors of one file, with names and classes; a `Source` of examples.

    Attributes:
      vectors: numbers [N, D], perhaps mapped from a .npy file.
      ids: N names.
      labels: class numbers, int [N].
      class_names: by class number; () without classes.
      mapped: the file that `vectors` is mapped from, or None.
    """

    vectors: np.ndarray
    ids: Sequence[Any]
    labels: np.ndarray
    class_names: tuple[str, ...] = ()
    mapped: Path | None = None
    always_readable: ClassVar[bool] = True

    @property
    def dim(self) -> int:
        """D, the numbers a vector has."""
        return self.vectors.shape[1]

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, index: int) -> dict[str, Any]:
        x = np.asarray(self.vectors[index], np.float32)
        check_finite(x, self.ids[index])
        return {"x": x, "label": int(self.labels[index]), "id": self.ids[index]}

    def __getstate__(self) -> dict[str, Any]:
        """A worker process maps the file again, instead of getting a copy."""
        hidden = {"vectors": None} if self.mapped else {}
        return {**self.__dict__, **hidden}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.mapped:
            self.vectors = np.load(self.mapped, mmap_mode="r", allow_pickle=False)


class JoinedTables:
    """The vectors of several files, one after another; a `Source` of examples."""

    always_readable = True

    def __init__(self, tables: Sequence[Table], class_names: tuple[str, ...]):
        """Joins tables; `class_names` are all classes, to which labels are mapped by name."""
        self.tables, self.class_names = tables, class_names
        self.ids = [name for table in tables for name in table.ids]
        self._ends = list(itertools.accumulate(map(len, tables)))
        numbers = {name: i for i, name in enumerate(class_names)}
        self._numbers = [[numbers[name] for name in table.class_names] for table in tables]

    @property
    def dim(self) -> int:
        """D, the numbers a vector has."""
        return self.tables[0].dim

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        which = bisect.bisect_right(self._ends, index)
        table = self.tables[which]
        example = table[index - self._ends[which] + len(table)]
        if self.class_names:
            example["label"] = self._numbers[which][example["label"]]
        return example


def check_finite(x: np.ndarray, name: Any) -> None:
    """Raises UserError if a vector has values that are NaN, infinite or beyond float32."""
    if not np.isfinite(x).all():
        raise UserError(f"vector {name} has values that are NaN or infinite")


def read_table(path: Path) -> Table:
    """Reads vectors, and if there are any their names and classes, from a file.

    A .npy file is an array [N, D], or one vector [D]. An .npz file has such an array, and may have
    arrays of names and classes. A parquet file has a column of lists of numbers, or else its number
    columns are the vectors.

    Raises:
      UserError: it cannot be read, has no vectors, or is larger than the free memory.
    """
    if (read := _READERS.get(path.suffix.lower())) is None:
        raise UserError(f"{path} is no file of vectors: use one of {' '.join(sorted(SUFFIXES))}")
    try:
        return read(path)
    except UserError as e:
        raise UserError(str(e) if str(path) in str(e) else f"cannot read {path}: {e}") from e
    except (  # what NumPy, zipfile and Arrow raise for damaged files
        OSError, ValueError, TypeError, KeyError, EOFError, MemoryError, NotImplementedError,
        RuntimeError, OverflowError, SyntaxError, zipfile.BadZipFile, zlib.error,
    ) as e:  # fmt: skip
        reason = e.strerror if isinstance(e, OSError) and e.strerror else first_line(e)
        raise UserError(f"cannot read {path}: {reason}") from e


def read_tables(place: Path) -> Table | JoinedTables:
    """Reads a file, or all files of vectors below a folder.

    Classes of several files are joined by name. Rows without an id are named by file and row.

    Raises:
      UserError: see `read_table`; or the files do not fit together.
    """
    if not place.is_dir():
        return read_table(place)
    paths = find_files(place, SUFFIXES, "vectors")
    tables = [read_table(path) for path in paths]
    if len(tables) == 1:
        return tables[0]
    if len(sizes := {table.dim for table in tables}) > 1:
        raise UserError(f"the files in {place} have vectors of different sizes: {sorted(sizes)}")
    named = {bool(table.class_names) for table in tables}
    if len(named) > 1:
        raise UserError(f"some files in {place} have classes and others have none")
    for path, table in zip(paths, tables, strict=True):
        if isinstance(table.ids, range):
            table.ids = [f"{path.relative_to(place)}:{row}" for row in table.ids]
    names = _sorted({name for table in tables for name in table.class_names})
    return JoinedTables(tables, tuple(names))


def _sorted(names: Iterable[str]) -> list[str]:
    """Class names in order: as numbers if all are integers, otherwise as text."""
    names = list(names)
    if all(name.lstrip("-").isdecimal() for name in names):
        return sorted(names, key=int)
    return sorted(names)


def _check_memory(nbytes: int) -> None:
    """Raises ValueError for contents that do not fit into the free memory."""
    if nbytes > 2**28 and 3 * nbytes > free_memory():  # of arrays and their copies
        raise ValueError(
            f"its contents take {nbytes / 2**30:.1f} GiB, too much for the free memory"
        )


def _texts(values: Any, what: str) -> list[str]:
    """A column of names or classes as text."""
    if not isinstance(values, list):
        values = np.asarray(values)
        if values.ndim != 1:
            raise ValueError(f"its {what} have the shape {values.shape}, not [N]")
        values = values.tolist()
    texts = []
    for row, value in enumerate(values):
        missing = value is None or (isinstance(value, float) and math.isnan(value))
        if missing or not isinstance(value, str | bytes | int | float):
            raise ValueError(f"its {what} have no text or number in row {row}: {value!r:.50}")
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        texts.append(text.encode("utf-8", "replace").decode())  # without lone surrogates
    return texts


def _table(vectors: Any, ids: Any = None, labels: Any = None, mapped: Path | None = None) -> Table:
    if not isinstance(vectors, np.ndarray) or vectors.dtype.kind not in "fiu":
        kind = getattr(vectors, "dtype", "none")
        raise ValueError(f"it has no array of numbers [N, D] (found: {kind})")
    if vectors.ndim == 1:
        vectors, mapped = vectors[None], None
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise ValueError(f"it has no vectors: its array has the shape {vectors.shape}, not [N, D]")
    count = len(vectors)
    names: Sequence[Any] = range(count) if ids is None else _texts(ids, "ids")
    classes = None if labels is None else _texts(labels, "labels")
    for what, column in (("ids", names), ("labels", classes)):
        if column is not None and len(column) != count:
            raise ValueError(f"it has {count} vectors and {len(column)} {what}")
    if classes is None:
        return Table(vectors, names, np.zeros(count, np.int32), (), mapped)
    class_names = _sorted(set(classes))
    numbers = {name: i for i, name in enumerate(class_names)}
    of_rows = np.array([numbers[name] for name in classes], np.int32)
    return Table(vectors, names, of_rows, tuple(class_names), mapped)


def _read_npy(path: Path) -> Table:
    return _table(np.load(path, mmap_mode="r", allow_pickle=False), mapped=path)


def _first(names: Iterable[str], known: Sequence[str]) -> str | None:
    """The first name that is known, whatever its case."""
    by_lower = {name.lower(): name for name in names}
    return next((by_lower[name] for name in known if name in by_lower), None)


def _read_npz(path: Path) -> Table:
    with zipfile.ZipFile(path) as archive:
        _check_memory(sum(entry.file_size for entry in archive.infolist()))
    with np.load(path, allow_pickle=False) as arrays:
        names = arrays.files
        place = _first(names, _VECTORS) or (names[0] if len(names) == 1 else None)
        columns = [_first(names, known) for known in (_IDS, _LABELS)]
        found = [None if name is None else arrays[name] for name in (place, *columns)]
    return _table(*found)


def _read_parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        types = {field.name: field.type for field in file.schema_arrow}
        ids, labels = (_first(types, known) for known in (_IDS, _LABELS))
        lists = [
            name
            for name, kind in types.items()
            if (pa.types.is_list(kind) or pa.types.is_large_list(kind))
            or pa.types.is_fixed_size_list(kind)
        ]
        lists = [name for name in lists if _is_number(types[name].value_type)]
        chosen = _first(lists, _VECTORS) or next(iter(lists), None)
        numbers = [n for n, kind in types.items() if _is_number(kind) and n not in (ids, labels)]
        columns = [chosen] if chosen else numbers
        if not columns:
            raise ValueError("it has neither a column of lists of numbers nor columns of numbers")
        texts = [name for name in (ids, labels) if name is not None]
        parts: list[np.ndarray] = []
        found: dict[str, list[Any]] = {name: [] for name in texts}
        total = 0
        for batch in file.iter_batches(_BATCH_ROWS, columns=[*columns, *texts]):
            rows = _rows(batch, chosen, numbers)
            parts.append(rows)
            total += batch.nbytes
            _check_memory(total)
            for name in texts:
                found[name] += batch.column(batch.schema.get_field_index(name)).to_pylist()
    except pa.ArrowException as e:
        raise ValueError(first_line(e)) from e
    if not parts:
        raise ValueError("it has no vectors: it has no rows")
    if len({part.shape[1] for part in parts}) > 1:
        raise ValueError("its lists have different lengths")
    return _table(
        np.concatenate(parts),
        None if ids is None else found[ids],
        None if labels is None else found[labels],
    )


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def _rows(batch: Any, chosen: str | None, numbers: Sequence[str]) -> np.ndarray:
    """The vectors [n, D] of a batch of rows of a parquet file."""
    index = batch.schema.get_field_index
    if chosen is None:
        columns = [batch.column(index(name)) for name in numbers]
        return np.stack([c.to_numpy(zero_copy_only=False) for c in columns], axis=1)
    column = batch.column(index(chosen))
    lengths = set(column.value_lengths().to_pylist())
    if column.null_count or len(lengths) != 1:
        raise ValueError(
            f"the lists of column {chosen!r} have different lengths, or some are missing"
        )
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)


_READERS: dict[str, Callable[[Path], Table]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".parquet": _read_parquet,
}
SUFFIXES = frozenset(_READERS)

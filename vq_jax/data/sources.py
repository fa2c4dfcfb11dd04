"""Data sources: random access to raw examples, by split.

A source is anything with `__len__` and `__getitem__(i) -> {"x": raw example, "label": int}`, perhaps
with an `id`. It returns None for an example that cannot be read, which the pipeline skips.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import io
import logging
import os
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import ml_collections

from vq_jax.console import is_live, stderr_console
from vq_jax.data.codes import read_codes
from vq_jax.errors import UserError, first_line
from vq_jax.files import system_mistake

log = logging.getLogger("vq_jax")


class Source(Protocol):
    """Random access to the examples of one split.

    A source of small examples, all of which can be read, may set `always_readable = True`.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any] | None: ...


@dataclasses.dataclass(frozen=True)
class Splits:
    """A data set: the training split, the held-out split, and the names of the classes."""

    train: Source
    val: Source
    class_names: tuple[str, ...]


# (config.data, seed) -> splits
OpenSource = Callable[[ml_collections.ConfigDict, int], Splits]


class Subset:
    """Some examples of a source."""

    def __init__(self, source: Source, indices: Sequence[int]):
        self.source, self.indices = source, indices
        self.always_readable = getattr(source, "always_readable", False)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        return self.source[self.indices[index]]


def check_fraction(fraction: float) -> None:
    """Raises UserError if this share of the examples cannot be held out."""
    if not 0 < fraction <= 1:
        raise UserError(f"data.val_fraction is {fraction}: use a number above 0 and at most 1")


def hold_out(names: Sequence[str], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Splits examples into (train, held out) by a hash of their names.

    An example stays in its split when others are added or removed.

    Args:
      names: one for each example; examples of one name are in one split.
      fraction: approximate share to hold out, at least one example; 1 holds out all.
      seed: of the hash.

    Returns:
      the indices into `names` of both splits.
    """
    check_fraction(fraction)
    digests = [hashlib.sha256(os.fsencode(f"{seed}/{name}")).digest() for name in names]
    places = [int.from_bytes(digest[:8], "big") / 2**64 for digest in digests]
    limit = max(fraction, min(places))
    train = [i for i, place in enumerate(places) if place > limit]
    return train, [i for i, place in enumerate(places) if place <= limit]


# --- folders --------------------------------------------------------------------------------------

# Names of the folder of held-out files beside "train".
_HELD_OUT = ("val", "valid", "validation", "test")


class FolderSource:
    """Files below a folder, one example each, in the order of their paths.

    A file that cannot be decoded gives None. It is logged the first time, and counted in `bad`.
    """

    def __init__(
        self,
        files: Sequence[Path],
        labels: Sequence[int],
        decode: Callable[[Path], Any],
        description: str = "files",
    ):
        """Makes the source.

        Args:
          files: the paths.
          labels: class number of each.
          decode: path to a raw example.
          description: of the files, in messages.
        """
        self.files, self.labels, self.description = files, labels, description
        self.decode = decode
        self.bad: set[int] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        try:
            x = self.decode(self.files[index])
        except Exception as e:  # a damaged file can make a decoder raise anything
            with self._lock:
                first = index not in self.bad
                self.bad.add(index)
            if first:
                log.warning("skipped %s: %s (%d so far)", self.files[index], e, len(self.bad))
            if len(self.bad) == len(self.files):
                raise UserError(
                    f"none of the {len(self.files)} {self.description} could be read; the last was "
                    f"{self.files[index]}: {e}"
                ) from e
            return None
        return {"x": x, "label": self.labels[index]}

    def __getstate__(self) -> dict[str, Any]:  # a lock cannot be sent to worker processes
        return {k: v for k, v in self.__dict__.items() if k != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


def find_files(folder: Path, suffixes: Collection[str] | None, noun: str) -> list[Path]:
    """Returns all files below a folder with one of the suffixes, sorted.

    Links to folders are followed, hidden files and folders (".thumbnails") skipped. Other files, and
    folders that cannot be read, are logged.

    Args:
      folder: to search.
      suffixes: of the files, in lower case; None takes all files.
      noun: name of such files, in messages.

    Raises:
      UserError: there is no such folder, or no such file in it.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: name the folder of your {noun}")
    files = sorted(_visible_files(folder))
    if suffixes is None:
        if not files:
            raise UserError(f"there are no files in {folder}")
        return files
    found = [p for p in files if p.suffix.lower() in suffixes]
    others = [p for p in files if p.suffix.lower() not in suffixes]
    if others:
        named = ", ".join(str(p.relative_to(folder)) for p in others[:5])
        more = ", ..." if len(others) > 5 else ""
        log.warning(
            "skipped %d files of %s that are no %s: %s%s", len(others), folder, noun, named, more
        )
    if not found:
        raise UserError(f"no {noun} in {folder} (known are {' '.join(sorted(suffixes))})")
    return found


def _visible_files(folder: Path) -> Iterator[Path]:
    """Yields the files below a folder, through links, each folder once."""

    def unreadable(e: OSError) -> None:
        log.warning("skipped folder %s: %s", e.filename, e.strerror)

    seen: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link to a parent, or a second path to the same files
            log.warning("skipped folder %s: a link to %s, which is read", place, real)
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(place, name) for name in names if not name.startswith(".")):
            try:
                if path.is_file():
                    yield path
                elif path.is_symlink():
                    log.warning("skipped %s: a broken link", path)
            except OSError as e:  # in a folder that can be listed but not entered
                log.warning("skipped %s: %s", path, e.strerror)


def _decode(
    decode: Callable[[Path, ml_collections.ConfigDict], Any],
    config: ml_collections.ConfigDict,
    path: Path,
) -> Any:
    """Calls `decode`; a function of the module, so that a source can be sent to worker processes."""
    return decode(path, config)


def split_folder(
    config: ml_collections.ConfigDict,
    seed: int,
    *,
    suffixes: Collection[str] | None,
    noun: str,
    group: Callable[[list[Path]], list[Path]] = list,
) -> tuple[list[list[tuple[Path, int]]], tuple[str, ...]]:
    """Divides the files below `config.folder` into the training and the held-out split.

    The first level of subfolders is the class. Folders `train` and `val` (or `valid`, `validation`,
    `test`) are the splits, if they are there.

    Args:
      config: the section `data`.
      seed: of what is held out.
      suffixes: of the files; None takes all.
      noun: name of a file, in messages.
      group: files to examples, where several files are one: a folder of them.

    Returns:
      the pairs (file, class number) of both splits, and the names of the classes.

    Raises:
      UserError: there are no such files.
    """
    folder = Path(config.folder)
    held = [name for name in _HELD_OUT if (folder / name).is_dir()]
    if held and (folder / "train").is_dir():
        if len(held) > 1:
            unused = ", ".join(held[1:])
            log.warning("the held-out split is %s/%s; not used: %s", folder, held[0], unused)
        roots = (folder / "train", folder / held[0])
        parts = [
            [(root, file) for file in group(find_files(root, suffixes, f"{noun}s"))]
            for root in roots
        ]
    else:
        files = group(find_files(folder, suffixes, f"{noun}s"))
        places = [str(file.relative_to(folder)) for file in files]
        sides = hold_out(places, config.val_fraction, seed)
        parts = [[(folder, files[i]) for i in side] for side in sides]

    def class_of(root: Path, file: Path) -> str:
        return file.relative_to(root).parts[0] if file.parent != root else ""

    names = sorted({class_of(*pair) for part in parts for pair in part})
    shown = (os.fsencode(name).decode("utf-8", "backslashreplace") for name in names)
    numbers = {name: i for i, name in enumerate(names)}
    labelled = [[(file, numbers[class_of(root, file)]) for root, file in part] for part in parts]
    return labelled, tuple(shown)


def open_folder(
    config: ml_collections.ConfigDict,
    seed: int,
    *,
    suffixes: Collection[str],
    noun: str,
    decode: Callable[[Path, ml_collections.ConfigDict], Any],
) -> Splits:
    """Opens a folder with one file an example; see `split_folder`.

    Args:
      config: the section `data`.
      seed: of what is held out.
      suffixes: of the files.
      noun: name of an example, in messages.
      decode: (path, config) to a raw example.

    Raises:
      UserError: there are no such files.
    """
    if not config.folder:
        raise UserError(f"data.source='folder' needs data.folder, a folder of {noun}s")
    parts, names = split_folder(config, seed, suffixes=suffixes, noun=noun)
    train, val = (
        FolderSource(
            [file for file, _ in part],
            [label for _, label in part],
            partial(_decode, decode, config),
            description=f"{split} {noun}s",
        )
        for part, split in zip(parts, ("training", "held-out"), strict=True)
    )
    return Splits(train, val, names)


# --- TFDS -----------------------------------------------------------------------------------------


class _TfdsSource:
    """A TFDS data source, reduced to what the pipeline uses."""

    def __init__(self, source: Any, feature: str, key: str = "x"):
        """Takes one feature of the data source's examples, under the name `key`."""
        self.source, self.feature, self.key = source, feature, key

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.source[index]
        found = {self.key: example[self.feature], "label": int(example.get("label", 0))}
        if isinstance(name := example.get("name"), bytes):
            found["id"] = name.decode("utf-8", "replace")
        return found


def _splits_of(
    builder: Any, val_split: str | None, config: ml_collections.ConfigDict, seed: int, feature: str
) -> Splits:
    """The splits of a prepared data set; without `val_split`, a part of the training split is held out."""
    features = builder.info.features
    names = tuple(getattr(features["label"], "names", None) or ()) if "label" in features else ()
    train: Source = _TfdsSource(builder.as_data_source(split="train"), feature)
    if val_split is None:
        parts = hold_out([str(i) for i in range(len(train))], config.val_fraction, seed)
        return Splits(Subset(train, parts[0]), Subset(train, parts[1]), names)
    return Splits(train, _TfdsSource(builder.as_data_source(split=val_split), feature), names)


def embedded(builder_name: str) -> OpenSource:
    """Returns the source of a TFDS builder of `builders`, whose feature is `image`."""

    def open_(config: ml_collections.ConfigDict, seed: int) -> Splits:
        from vq_jax.data import builders

        with _writable():
            builder_class = getattr(builders, builder_name)
            builder = builder_class(data_dir=config.dir or None, file_format="array_record")
            _prepare(builder, builder_name.lower())
        return _splits_of(builder, "test", config, seed, "image")

    return open_


@contextlib.contextmanager
def _writable() -> Iterator[None]:
    """Raises UserError if the folder of prepared data sets cannot be used."""
    try:
        yield
    except OSError as e:
        if (text := system_mistake(e)) is None:
            if not isinstance(e, FileNotFoundError):  # a failed download, say
                raise
            text = f"{e.filename}: {e.strerror}"
        raise UserError(
            f"data sets cannot be prepared ({text}): set data.dir, or TFDS_DATA_DIR, to "
            "another folder"
        ) from e


def _prepare(builder: Any, name: str) -> None:
    """Downloads and prepares a data set once, with a progress bar on a terminal."""
    import tensorflow_datasets as tfds

    if not builder.data_path.exists():
        size = builder.info.download_size
        known = f", a download of {size}" if size else ""
        log.info("preparing data set %s in %s%s", name, builder.data_path, known)
    bar = is_live(stderr_console())
    (tfds.enable_progress_bar if bar else tfds.disable_progress_bar)()
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints sizes even if they are unknown
        try:
            builder.download_and_prepare()
        except FileExistsError:  # another process has prepared it in the meantime
            builder.download_and_prepare()


def open_tfds(name: str, config: ml_collections.ConfigDict, seed: int, feature: str) -> Splits:
    """Opens, and at first use prepares, a data set of TFDS.

    Args:
      name: as `tfds.builder` takes it.
      config: the section `data`.
      seed: of what is held out, if the data set has no split for it.
      feature: name of the example among its features.

    Raises:
      UserError: it is not known, cannot be prepared, or has no such feature.
    """
    import tensorflow_datasets as tfds

    dataset = name.partition("/")[0].partition(":")[0]
    try:
        builder = tfds.builder(name, data_dir=config.dir or None, file_format="array_record")
    except tfds.core.DatasetNotFoundError as e:
        near = difflib.get_close_matches(dataset, tfds.list_builders(with_community_datasets=False))
        hint = f"; near: {', '.join(near)}" if near else ""
        raise UserError(f"TFDS has no data set {name!r}{hint}") from e
    except Exception as e:
        raise UserError(f"TFDS cannot open {name!r}: {first_line(e)}") from e
    try:
        with _writable():
            _prepare(builder, name)
    except UserError:
        raise
    except Exception as e:
        if "tensorflow" in str(e).lower() and isinstance(e, ImportError):
            raise UserError(
                f"tfds:{name} needs TensorFlow once, to prepare it: "
                "pip install 'vq_jax[prepare]' and run this again"
            ) from e
        raise UserError(
            f"TFDS could not prepare {name!r} in {builder.data_path}: {first_line(e)}"
        ) from e
    splits = builder.info.splits
    val = next((s for s in ("validation", "test") if s in splits), None)
    if "train" not in splits or feature not in builder.info.features:
        raise UserError(
            f"tfds:{name} has no split 'train' with a feature {feature!r}: its splits are "
            f"{', '.join(splits)}, its features {', '.join(builder.info.features)}"
        )
    return _splits_of(builder, val, config, seed, feature)


def open_codes(config: ml_collections.ConfigDict, seed: int) -> Splits:
    """Opens a data set of codes, as `tokenize` writes it: examples have `codes` in place of `x`."""
    if not config.folder:
        raise UserError("data.source='codes' needs data.folder, a folder that tokenize wrote")
    metadata, train, val = read_codes(Path(config.folder))
    train, val = (_TfdsSource(part, "codes", "codes") for part in (train, val))
    return Splits(train, val, tuple(metadata["classes"]))

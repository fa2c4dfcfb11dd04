"""Where images come from: random access to uint8 images, by split.

A source is anything with `__len__` and `__getitem__(i) -> {"image": uint8 [H, W, C], "label": int}`
(or None, for an image that cannot be read, which the pipeline passes over).
"""

import contextlib
import dataclasses
import difflib
import hashlib
import io
import logging
import os
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import ml_collections

from vq_jax.data.codes import read_codes
from vq_jax.data.images import EXTENSIONS, decode
from vq_jax.errors import UserError, first_line
from vq_jax.files import system_mistake

log = logging.getLogger("vq_jax")


class Source(Protocol):
    """Random access to the examples of one split."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any] | None: ...


@dataclasses.dataclass(frozen=True)
class Splits:
    """A data set: what to train on, what to hold out, and the names of its classes."""

    train: Source
    val: Source
    class_names: tuple[str, ...]


class Subset:
    """Some examples of a source."""

    def __init__(self, source: Source, indices: Sequence[int]):
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        return self.source[self.indices[index]]


def hold_out(names: Sequence[str], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Splits examples into (train, held out) by a hash of each one's name.

    An example keeps its side when others come or go.

    Args:
      names: one for each example, all different.
      fraction: share to hold out, about; at least one is. 1 holds out all, to be measured on.
      seed: another seed holds out others.

    Returns:
      the positions in `names` of either side.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"data.val_fraction is {fraction}: use a number above 0, and 1 at most")
    digests = [hashlib.sha256(os.fsencode(f"{seed}/{name}")).digest() for name in names]
    places = [int.from_bytes(digest[:8], "big") / 2**64 for digest in digests]
    limit = max(fraction, min(places))
    train = [i for i, place in enumerate(places) if place > limit]
    return train, [i for i, place in enumerate(places) if place <= limit]


# --- folders --------------------------------------------------------------------------------------

# Beside a folder "train", what the folder of held-out images is called.
_HELD_OUT = ("val", "valid", "validation", "test")


class FolderSource:
    """The images below a folder, in the order of their paths; the first subfolder is the class.

    An image that cannot be decoded is None, logged by name the first time and counted in `bad`.
    """

    def __init__(
        self, files: Sequence[Path], labels: Sequence[int], min_side: int = 0, what: str = ""
    ):
        """`min_side` is that of `decode`; `what` says which images these are, in messages."""
        self.files, self.labels, self.min_side, self.what = files, labels, min_side, what
        self.bad: set[int] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        try:
            image = decode(self.files[index], self.min_side)
        except Exception as e:  # whatever a damaged file makes a decoder raise
            with self._lock:
                first = index not in self.bad
                self.bad.add(index)
            if first:
                log.warning("skipped %s: %s (%d so far)", self.files[index], e, len(self.bad))
            if len(self.bad) == len(self.files):
                kind = f"{self.what} images".strip()
                raise UserError(
                    f"none of the {len(self.files)} {kind} could be read; the last was "
                    f"{self.files[index]}: {e}"
                ) from e
            return None
        return {"image": image, "label": self.labels[index]}

    def __getstate__(self) -> dict[str, Any]:  # worker processes get a copy; a lock can't go along
        return {k: v for k, v in self.__dict__.items() if k != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


def find_files(folder: Path, suffixes: Collection[str] = EXTENSIONS) -> list[Path]:
    """All files below a folder with one of the suffixes, by default images; sorted.

    Links to folders are followed. Hidden files and folders (".thumbnails") are passed over. Other
    files, and folders that cannot be read, are named in the log.

    Raises:
      UserError: there is no such folder, or no such file in it.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: set --config.data.folder to your images")
    files = sorted(_walk(folder))
    found = [p for p in files if p.suffix.lower() in suffixes]
    others = [p for p in files if p.suffix.lower() not in suffixes]
    what = "images" if suffixes is EXTENSIONS else "/".join(sorted(suffixes))
    if others:
        named = ", ".join(str(p.relative_to(folder)) for p in others[:5])
        more = ", ..." if len(others) > 5 else ""
        log.warning(
            "skipped %d files of %s that are no %s: %s%s", len(others), folder, what, named, more
        )
    if not found:
        raise UserError(f"no {what} in {folder} (known are {' '.join(sorted(suffixes))})")
    return found


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder, through links, each folder once."""

    def unreadable(e: OSError) -> None:
        log.warning("skipped folder %s: %s", e.filename, e.strerror)

    seen: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link back up, or a second way to the same files
            log.warning("skipped folder %s: its files are in %s, too", place, real)
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(place, name) for name in names if not name.startswith(".")):
            try:
                if path.is_file():
                    yield path
                elif path.is_symlink():
                    log.warning("skipped %s: a link to what is not there", path)
            except OSError as e:  # of a folder that can be listed and not entered
                log.warning("skipped %s: %s", path, e.strerror)


def _folder(config: ml_collections.ConfigDict, seed: int) -> Splits:
    if not config.folder:
        raise UserError("data.source=folder needs --config.data.folder=PATH, a folder of images")
    folder = Path(config.folder)
    held = [name for name in _HELD_OUT if (folder / name).is_dir()]
    if held and (folder / "train").is_dir():
        if len(held) > 1:
            unused = ", ".join(held[1:])
            log.warning("held out is %s/%s; not used: %s", folder, held[0], unused)
        roots = (folder / "train", folder / held[0])
        parts = [[(root, file) for file in find_files(root)] for root in roots]
    else:
        files = find_files(folder)
        places = [str(file.relative_to(folder)) for file in files]
        sides = hold_out(places, config.val_fraction, seed)
        parts = [[(folder, files[i]) for i in side] for side in sides]

    def class_of(root: Path, file: Path) -> str:
        return file.relative_to(root).parts[0] if file.parent != root else ""

    names = sorted({class_of(*pair) for part in parts for pair in part})
    shown = (os.fsencode(name).decode("utf-8", "backslashreplace") for name in names)
    resize = config.resolution if config.resize is None else config.resize
    min_side = max(resize, config.resolution) if resize else 0
    numbers = {name: i for i, name in enumerate(names)}
    train, val = (
        FolderSource(
            [file for _, file in part],
            [numbers[class_of(*pair)] for pair in part],
            min_side,
            what=what,
        )
        for part, what in zip(parts, ("training", "held-out"), strict=True)
    )
    return Splits(train, val, tuple(shown))


# --- TFDS -----------------------------------------------------------------------------------------


class _TfdsSource:
    """A TFDS data source with only what the pipeline uses: `image`, or `codes`, and `label`."""

    def __init__(self, source: Any, field: str = "image"):
        self.source, self.field = source, field

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.source[index]
        return {self.field: example[self.field], "label": int(example.get("label", 0))}


def _prepared(
    builder: Any, val_split: str | None, config: ml_collections.ConfigDict, seed: int
) -> Splits:
    features = builder.info.features
    names = tuple(getattr(features["label"], "names", None) or ()) if "label" in features else ()
    train: Source = _TfdsSource(builder.as_data_source(split="train"))
    if val_split is None:
        parts = hold_out([str(i) for i in range(len(train))], config.val_fraction, seed)
        return Splits(Subset(train, parts[0]), Subset(train, parts[1]), names)
    return Splits(train, _TfdsSource(builder.as_data_source(split=val_split)), names)


def _embedded(name: str) -> Callable[[ml_collections.ConfigDict, int], Splits]:
    def open_(config: ml_collections.ConfigDict, seed: int) -> Splits:
        from vq_jax.data import builders

        builder_class = {"emoji": builders.Emoji, "photos": builders.Photos}[name]
        with _writable():
            builder = builder_class(data_dir=config.dir or None, file_format="array_record")
            _prepare(builder, name)
        return _prepared(builder, "test", config, seed)

    return open_


@contextlib.contextmanager
def _writable() -> Iterator[None]:
    """Raises UserError where the folder of prepared data sets cannot be used."""
    try:
        yield
    except OSError as e:
        if (text := system_mistake(e)) is None:
            if not isinstance(e, FileNotFoundError):  # a failed download, say
                raise
            text = f"{e.filename}: {e.strerror}"
        raise UserError(
            f"data sets cannot be prepared ({text}): set --config.data.dir, or TFDS_DATA_DIR, to "
            "another folder"
        ) from e


def _prepare(builder: Any, name: str) -> None:
    """Downloads and prepares a data set, once, with a word or a bar about it."""
    import tensorflow_datasets as tfds

    if not builder.data_path.exists():
        size = builder.info.download_size
        known = f", a download of {size}" if size else ""
        log.info("preparing data set %s in %s%s", name, builder.data_path, known)
    bar = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    (tfds.enable_progress_bar if bar else tfds.disable_progress_bar)()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints sizes it does not know
        builder.download_and_prepare()


def _tfds(name: str, config: ml_collections.ConfigDict, seed: int) -> Splits:
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
    if "train" not in splits or "image" not in builder.info.features:
        raise UserError(f"tfds:{name} has no split 'train' of images: {', '.join(splits)}")
    return _prepared(builder, val, config, seed)


def _codes(config: ml_collections.ConfigDict, seed: int) -> Splits:
    """What `--mode=tokenize` wrote: examples have `codes` instead of an image."""
    if not config.folder:
        raise UserError("data.source=codes needs --config.data.folder=DIR, which tokenize wrote")
    about, train, val = read_codes(Path(config.folder))
    train, val = (_TfdsSource(part, "codes") for part in (train, val))
    return Splits(train, val, tuple(about["classes"]))


# name -> function of (config.data, seed) to Splits; any other source is "tfds:NAME"
SOURCES: dict[str, Callable[[ml_collections.ConfigDict, int], Splits]] = {
    "emoji": _embedded("emoji"),
    "photos": _embedded("photos"),
    "folder": _folder,
}


def open_source(config: ml_collections.ConfigDict, seed: int = 0) -> Splits:
    """Opens, and on first use prepares, the data set that `config.data` names.

    Args:
      config: the section `data`.
      seed: draws what is held out, where the data set does not say.

    Raises:
      UserError: it cannot be had, with what to do.
    """
    if config.source.startswith("tfds:"):
        return _tfds(config.source.removeprefix("tfds:"), config, seed)
    if config.source == "codes":  # of priors alone
        return _codes(config, seed)
    return SOURCES[config.source](config, seed)

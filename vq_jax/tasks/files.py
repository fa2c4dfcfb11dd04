"""Commands from files to files: one into one, or a folder into a folder."""

import os
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vq_jax.data.images import EXTENSIONS, read_image, save_image
from vq_jax.data.sources import find_files
from vq_jax.errors import UserError
from vq_jax.files import STDIO
from vq_jax.training.report import is_live, stderr

_BYTES = 2**24  # of what is read, that are worked on together
_FILES = 256  # likewise


def check_input(input: Path) -> None:
    """Raises UserError where there is no such --input."""
    if input != STDIO and not input.exists():
        raise UserError(f"there is no {input}: --input takes a file or a folder of files")


def pair_files(
    input: Path, output: Path, suffixes: Collection[str] = EXTENSIONS, to: str = ".png"
) -> list[tuple[Path, Path]]:
    """Each file to read, and the one to write of it.

    Args:
      input: a file, or a folder whose tree of files is mirrored in `output`; `STDIO` is standard input.
      output: the file, or folder, to write; `STDIO` is standard output.
      suffixes: of the files that are read of a folder; by default those of images.
      to: the suffix of what is written where no file is named.

    Raises:
      UserError: there is no such input, or something would be written among the originals.
    """
    check_input(input)
    if STDIO in (input, output):
        if input.is_dir() or (output != STDIO and output.is_dir()):
            raise UserError("standard input and output are of one file: name no folder beside them")
        return [(input, output)]
    if input.is_dir() and (output.is_file() or output.suffix.lower() in {*EXTENSIONS, to}):
        raise UserError(f"--input={input} is a folder, and --output={output} a file: name a folder")
    if input.is_dir():
        pairs = [
            (p, (output / p.relative_to(input)).with_suffix(to))
            for p in find_files(input, suffixes)
        ]
        if len({target for _, target in pairs}) < len(pairs):  # a.jpg beside a.png: keep both
            pairs = [(p, target.with_name(p.name + to)) for p, target in pairs]
    else:
        into_folder = output.is_dir() or not output.suffix
        pairs = [(input, output / f"{input.stem}{to}" if into_folder else output)]
    inputs = {source.resolve() for source, _ in pairs}
    inside = input.is_dir() and output.resolve().is_relative_to(input.resolve())
    if inside or any(target.resolve() in inputs for _, target in pairs):
        raise UserError(f"--output={output} would write among the originals: name another place")
    return pairs


def _place_of(pairs: list[tuple[Path, Path]]) -> str:
    """Where the files to write lie: the file, or what folder they share."""
    places = [str(target) for _, target in pairs]
    if places == [str(STDIO)]:
        return "standard output"
    return places[0] if len(places) == 1 else os.path.commonpath(places)


def change_files(
    pairs: list[tuple[Path, Path]],
    *,
    read: Callable[[Path], Any],
    work: Callable[[list[Any]], Iterable[Any]],
    write: Callable[[Any, Path], None],
    verb: str,
    nbytes: Callable[[Any], int],
    summary: Callable[[], str] = lambda: "",
) -> None:
    """Reads files, works on several at once, and writes what comes of each.

    Of many, one that cannot be read, changed or written is named, and the others are done.

    Args:
      pairs: from `pair_files`.
      read: a file to an item.
      work: items to their results, in order; a result may be a `UserError`.
      write: a result, and its file.
      verb: what is said to have been done.
      nbytes: how much memory an item takes, about.
      summary: what more is said, while it goes on and at its end.

    Raises:
      UserError: at the end, where there were files that could not be changed.
    """
    failed: list[str] = []
    done = 0

    def fail(path: Path, error: UserError) -> None:
        failed.append(str(error) if str(path) in str(error) else f"{path}: {error}")
        if len(pairs) == 1:
            raise UserError(failed[0]) from error

    with Progress(
        TextColumn(verb),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[shown]}"),
        console=(console := Console(stderr=True)),
        transient=True,
        disable=len(pairs) < 2 or not is_live(console),
    ) as progress:
        task = progress.add_task(verb, total=len(pairs), shown="")
        batch: list[tuple[tuple[Path, Path], Any]] = []
        held = 0
        for i, pair in enumerate(pairs):
            try:
                item = read(pair[0])
                batch.append((pair, item))
                held += nbytes(item)
            except UserError as e:
                fail(pair[0], e)
            if held < _BYTES and len(batch) < _FILES and i + 1 < len(pairs):
                continue
            results = work([item for _, item in batch]) if batch else ()
            for ((source, target), _), result in zip(batch, results, strict=True):
                try:
                    if isinstance(result, UserError):
                        raise result
                    write(result, target)
                except UserError as e:
                    fail(source, e)
                    continue
                done += 1
                progress.update(task, completed=done + len(failed), shown=summary())
            batch, held = [], 0
    for line in failed:
        stderr(f"skipped: {line}")
    if done:
        more = f": {summary()}" if summary() else ""
        text = f"{verb} {done} of {len(pairs)} into {_place_of(pairs)}{more}"
        # Standard output is the file, where one goes there.
        (stderr if pairs[0][1] == STDIO else print)(text)
    if failed:
        raise UserError(f"{len(failed)} of {len(pairs)} files could not be {verb}")


def change_images(
    pairs: list[tuple[Path, Path]],
    channels: int,
    change: Callable[[np.ndarray], np.ndarray],
    verb: str,
    *,
    alpha: bool = False,
) -> None:
    """`change_files` of images, one by one.

    Args:
      pairs: from `pair_files`.
      channels: 1 or 3.
      change: uint8 [H, W, channels] to an image.
      verb: what is said to have been done.
      alpha: an image with transparency has a channel more, for it.
    """

    def work(images: list[np.ndarray]) -> Iterable[np.ndarray | UserError]:
        for image in images:
            try:
                yield change(image)
            except UserError as e:
                yield e

    change_files(
        pairs,
        read=lambda path: read_image(path, channels, alpha=alpha),
        work=work,
        write=save_image,
        verb=verb,
        nbytes=lambda image: image.nbytes,
    )

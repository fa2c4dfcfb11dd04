"""The loop of commands that turn files into files, or a folder into a folder."""

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vq_jax.console import SECONDS_BETWEEN_LINES, is_live, stderr, stderr_console
from vq_jax.data.images import EXTENSIONS, read_image, save_image
from vq_jax.data.sources import find_files
from vq_jax.errors import UserError
from vq_jax.files import STDIO

_BYTES = 2**24  # of the files that are processed together, at most
_FILES = 256  # processed together, at most


def check_input(input: Path) -> None:
    """Raises UserError if the input does not exist."""
    if input != STDIO and not input.exists():
        raise UserError(f"input: {input} does not exist; give a file or a folder of files")


def check_output(path: Path, suffixes: Collection[str] | None) -> None:
    """Raises UserError if a file to write has none of the suffixes; standard output needs none."""
    if path != STDIO and suffixes is not None and (suffix := path.suffix.lower()) not in suffixes:
        known = " ".join(sorted(suffixes))
        raise UserError(f"output: {suffix} is no format that can be written ({known})")


def pair_files(
    input: Path,
    output: Path,
    suffixes: Collection[str] | None = EXTENSIONS,
    to: str = ".png",
    noun: str = "image",
    name: Callable[[Path], str] | None = None,
    is_one: Callable[[Path], bool] = Path.is_file,
) -> list[tuple[Path, Path]]:
    """Pairs each file to read with the file to write.

    Args:
      input: a file, or a folder whose tree of files is mirrored in `output`; `STDIO` is standard input.
      output: the file, or folder, to write; `STDIO` is standard output.
      suffixes: of the files to read in a folder; by default those of images. None takes all files.
      to: suffix of the files to write, if `output` does not name a file.
      noun: name of such a file, in messages.
      name: file to read -> name of the file to write; None replaces the suffix by `to`.
      is_one: whether the input is one example: a file, or a folder of numbered frames.

    Raises:
      UserError: the input does not exist, or a file would be written among the inputs.
    """
    check_input(input)
    named = name or (lambda path: path.stem + to)
    if STDIO in (input, output):
        if input.is_dir() or (output != STDIO and output.is_dir()):
            raise UserError("standard input and output take one file: name no folder with them")
        return [(input, output)]
    several = input.is_dir() and not is_one(input)
    if several and (
        output.is_file() or output.suffix.lower() in {*EXTENSIONS, *(suffixes or ()), to}
    ):
        raise UserError(f"input: {input} is a folder, and output: {output} a file; name a folder")

    if several:
        found = find_files(input, suffixes, f"{noun}s")
        pairs = [(p, output / p.relative_to(input).with_name(named(p))) for p in found]
        if len({target for _, target in pairs}) < len(pairs):  # a.jpg and a.png: keep both
            pairs = [(p, target.with_name(p.name + to)) for p, target in pairs]
    else:
        into_folder = output.is_dir() or not output.suffix
        pairs = [(input, output / named(input) if into_folder else output)]
    inputs = {source.resolve() for source, _ in pairs}
    inside = several and output.resolve().is_relative_to(input.resolve())
    if inside or any(target.resolve() in inputs for _, target in pairs):
        raise UserError(f"output: {output} is among the inputs; name another place")
    return pairs


def _place_of(pairs: list[tuple[Path, Path]]) -> str:
    """The file to write, or the folder that all files to write share."""
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
    """Reads files, processes several at once, and writes the results.

    A file that cannot be read, processed or written is named at the end, and the others are done. It is one
    function because reading, batching and writing share the progress bar and the list of failures.

    Args:
      pairs: from `pair_files`.
      read: path -> item.
      work: items -> their results, in order; a result may be a `UserError`.
      write: (result, path) -> None.
      verb: past participle of the work, for messages.
      nbytes: approximate memory of an item.
      summary: text that is shown during the work and at its end.

    Raises:
      UserError: at the end, if a file could not be processed; for a single file, at once.
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
        console=(console := stderr_console()),
        transient=True,
        disable=len(pairs) < 2 or not is_live(console),
    ) as progress:
        task = progress.add_task(verb, total=len(pairs), shown="")
        last_line = time.perf_counter()
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
            now = time.perf_counter()
            if not is_live(console) and now - last_line > SECONDS_BETWEEN_LINES:
                last_line = now
                stderr(f"{verb} {done} of {len(pairs)}")
    for line in failed:
        stderr(f"skipped: {line}")
    if done:
        more = f": {summary()}" if summary() else ""
        text = f"{verb} {done} of {len(pairs)} into {_place_of(pairs)}{more}"
        # Standard output may be the file.
        (stderr if pairs[0][1] == STDIO else print)(text)
    if failed:
        raise UserError(f"{len(failed)} of {len(pairs)} files could not be {verb}")


def each(items: list[Any], work: Callable[[list[Any]], Iterable[Any]]) -> Iterator[Any | UserError]:
    """Yields the results of work on all items; if it fails, those of one item after another.

    Args:
      items: the items.
      work: items -> their results, in order.

    Yields:
      results, and UserErrors in place of those that there are none of.
    """
    found: list[Any] = []
    try:
        found = list(work(items))
    except UserError:
        for item in items:
            try:
                yield next(iter(work([item])))
            except UserError as e:
                yield e
    yield from found


def change_images(
    pairs: list[tuple[Path, Path]],
    channels: int,
    change: Callable[[np.ndarray], np.ndarray],
    verb: str,
    *,
    alpha: bool = False,
) -> None:
    """Runs `change_files` for images, one at a time.

    Args:
      pairs: from `pair_files`.
      channels: 1 or 3.
      change: image uint8 [H, W, channels] -> image.
      verb: past participle of the work, for messages.
      alpha: whether images with transparency have one more channel, for opacity.
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

"""Files to `.vqz` files, and back: the commands over `codec.py`."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    track,
)

from vq_jax import codec, files
from vq_jax import config as configs
from vq_jax.bitstream import SUFFIX
from vq_jax.codec import Codec, Medium
from vq_jax.data.sources import open_source
from vq_jax.errors import UserError
from vq_jax.tasks.files import check_input, pair_files, place_of
from vq_jax.tasks.tokenize import encoded, prepared
from vq_jax.training.report import stderr

_COUNTED = 4096  # training images whose codes are counted, at most
_BYTES = 2**24  # of what is compressed, that go through the model together
_FILES = 256  # likewise


def compress(
    workdir: Path,
    *,
    tokenizer: Path | None,
    input: Path,
    output: Path,
    entropy: str | None = None,
    quality: int | None = None,
    data: ConfigDict | None = None,
) -> None:
    """`--mode=compress`: writes a `.vqz` file of a file, or of each in a folder.

    Args:
      workdir: a tokenizer's run; or a prior's, by which codes are then coded.
      tokenizer: the tokenizer's run, where it is elsewhere than the prior's config says.
      input: a file, or a folder whose tree is mirrored in `output`.
      output: the file, or folder, to write.
      entropy, quality: see `Codec.compress`.
      data: a section `data` that names what to count codes on, instead of the run's own.
    """
    check_input(input)  # before anything is loaded
    opened = codec.load(workdir, tokenizer)
    opened.check(None if entropy == "static" else entropy, quality)
    pairs = pair_files(input, output, opened.medium.suffixes, SUFFIX)
    if pairs[0][1].suffix.lower() in opened.medium.suffixes:
        raise UserError(f"--output={output} would be a {SUFFIX} file by another's name: name it so")
    if entropy == "static" or data is not None or (not entropy and "prior" not in opened.models):
        _count(opened, codec.tokenizer_folder(workdir, tokenizer), data, entropy == "static")
    if "prior" in opened.models and entropy in (None, "prior"):
        stderr(
            "coded by a prior: to be read where it computes the same, on this kind of machine with "
            "this version of JAX; --entropy=static reads alike everywhere"
        )

    def read(path: Path) -> tuple[np.ndarray, tuple[int, ...]]:
        x = opened.medium.read(path)
        return x, opened.medium.shape(x)

    def work(xs: list[np.ndarray]) -> list[bytes]:
        return opened.compress_all(xs, entropy=entropy, quality=quality)

    _change(pairs, 1, opened.medium, read, work, files.write, "compressed")


def decompress(workdir: Path, *, tokenizer: Path | None, input: Path, output: Path) -> None:
    """`--mode=decompress`: what is in a `.vqz` file, or in each in a folder.

    Args:
      workdir, tokenizer: the run that it was compressed with.
      input, output: as for `compress`.
    """
    check_input(input)  # before anything is loaded
    opened = codec.load(workdir, tokenizer)
    pairs = pair_files(input, output, (SUFFIX,), opened.medium.suffix)
    if (suffix := pairs[0][1].suffix.lower()) not in opened.medium.suffixes:
        known = " ".join(sorted(opened.medium.suffixes))
        raise UserError(f"--output={output}: {suffix} is no format that is written ({known})")

    def read(path: Path) -> tuple[Any, tuple[int, ...]]:
        try:
            codes, shape = opened.read(path.read_bytes())
        except OSError as e:
            raise UserError(f"it cannot be read: {e.strerror or e}") from e
        return (codes, shape), shape

    def work(items: list[Any]) -> Iterator[np.ndarray]:
        return opened.medium.decode(*zip(*items, strict=True))

    _change(pairs, 0, opened.medium, read, work, opened.medium.write, "decompressed")


def _count(opened: Codec, folder: Path, data: ConfigDict | None, needed: bool) -> None:
    """Counts the training codes, once a run, and keeps the counts in the tokenizer's folder.

    Args:
      opened: gets them.
      folder: the tokenizer's.
      data: a section `data` to count on, or None for the run's own.
      needed: whether it is the user's mistake, and no more than a notice, where there are no data.
    """
    place = folder / codec.COUNTS
    if "static" in opened.models:
        if data is not None:
            raise UserError(
                f"{place} is there already, and files are coded by it: remove it to count others"
            )
        return
    config = opened.tokenizer.config.copy_and_resolve_references()
    try:
        configs.use_data(config, data)
        if not needed and data is None and config.data.source.startswith("tfds:"):
            raise UserError(f"{config.data.source} may have to be downloaded: say --entropy=static")
        source = open_source(config.data, config.seed).train
        step = max(1, -(-len(source) // _COUNTED))
        indices = track(range(0, len(source), step), "counting training codes", transient=True)
        images = prepared(config, source, indices)
        counts = codec.count(opened.tokenizer, (c for c, _ in encoded(opened.tokenizer, images)))
        if not counts.any():
            raise UserError("there are no training images: --config names others")
        codec.save_counts(folder, opened.tokenizer, counts)
        # Those of who saved them last, where several counted at once.
        kept = codec.read_counts(folder, opened.tokenizer)
        counts = counts if kept is None else kept
    except UserError as e:
        if needed or data is not None:
            raise UserError(f"the training codes cannot be counted: {e}") from e
        stderr(f"codes at fixed width: those of the training images cannot be counted ({e})")
        return
    opened.add_counts(counts)
    stderr(f"counted {counts.sum():,} training codes into {place}: it belongs to the model")


def _change(
    pairs: list[tuple[Path, Path]],
    small_side: int,
    medium: Medium,
    read: Callable[[Path], tuple[Any, tuple[int, ...]]],
    work: Callable[[list[Any]], Iterable[Any]],
    write: Callable[[Any, Path], None],
    verb: str,
) -> None:
    """Reads files, works on several at once, and writes what comes of each.

    Of many, one that cannot be read or written is named, and the others are done.

    Args:
      pairs: from `pair_files`.
      small_side: which of a pair is the compressed file, 0 or 1.
      medium: what the other holds.
      read: a file to an item, and the shape of what the medium makes of it.
      work: items to results.
      write: a result, and its file.
      verb: what is said to have been done.

    Raises:
      UserError: at the end, where there were files that could not be read or written.
    """
    started, failed = time.perf_counter(), []
    done = plain = small = units = 0

    def fail(path: Path, error: UserError) -> None:
        failed.append(f"{path}: {error}")
        if len(pairs) == 1:
            raise UserError(failed[0]) from error

    with Progress(
        TextColumn(verb),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[shown]}"),
        console=Console(stderr=True),
        transient=True,
        disable=len(pairs) < 2,
    ) as progress:
        task = progress.add_task(verb, total=len(pairs), shown="")
        batch: list[tuple[tuple[Path, Path], Any, tuple[int, ...]]] = []
        for i, pair in enumerate(pairs):
            try:
                batch.append((pair, *read(pair[0])))
            except UserError as e:
                fail(pair[0], e)
            held = sum(medium.nbytes(shape) for _, _, shape in batch)
            if held < _BYTES and len(batch) < _FILES and i + 1 < len(pairs):
                continue
            results = work([item for _, item, _ in batch]) if batch else ()
            for (both, _, shape), result in zip(batch, results, strict=True):
                try:
                    write(result, both[1])
                except UserError as e:
                    fail(both[0], e)
                    continue
                done, units = done + 1, units + math.prod(shape)
                plain, small = plain + medium.nbytes(shape), small + both[small_side].stat().st_size
                shown = _summary(started, done, units, medium.unit, plain / small)
                progress.update(task, completed=done + len(failed), shown=shown)
            batch = []
    for line in failed:
        stderr(f"skipped: {line}")
    if done:
        print(
            f"{verb} {done} of {len(pairs)} into {place_of(pairs)}: {plain:,} bytes uncompressed, {small:,} "
            f"compressed, {8 * small / units:.3f} bits a {medium.unit}; "
            + _summary(started, done, units, medium.unit, plain / small)
        )
    if failed:
        raise UserError(f"{len(failed)} of {len(pairs)} files could not be {verb}")


def _summary(started: float, done: int, units: int, unit: str, ratio: float) -> str:
    """What is shown of a folder under way, and at its end."""
    seconds = time.perf_counter() - started
    speed = f"{done / seconds:.1f} files/s, {units / seconds / 1e6:.2f} million {unit}s/s"
    return f"{ratio:.1f} times smaller, {speed}"

"""Files to `.vqz` files, and back: the commands over `codec.py`."""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vq_jax import codec, files
from vq_jax import config as configs
from vq_jax.bitstream import SUFFIX
from vq_jax.codec import Codec, Medium
from vq_jax.data.sources import open_source
from vq_jax.errors import UserError
from vq_jax.tasks.files import change_files, check_input, pair_files
from vq_jax.tasks.tokenize import encoded, prepared
from vq_jax.training import parallel
from vq_jax.training.report import stderr, track

_COUNTED = 4096  # training images whose codes are counted, at most


def compress(
    workdir: Path,
    *,
    tokenizer: Path | None = None,
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
    parallel.keep_memory()
    check_input(input)  # before anything is loaded
    opened = codec.load(workdir, tokenizer)
    opened.check(None if entropy == "static" else entropy, quality)
    pairs = pair_files(input, output, opened.medium.suffixes, SUFFIX)
    if (suffix := pairs[0][1].suffix.lower()) in opened.medium.suffixes:
        raise UserError(f"--output={output} would be a {SUFFIX} file by the name of a {suffix} one")
    if entropy == "static" or data is not None or (not entropy and "prior" not in opened.models):
        _count(opened, codec.tokenizer_folder(workdir, tokenizer), data, entropy == "static")
    if "prior" in opened.models and entropy in (None, "prior"):
        stderr(
            "coded by a prior: to be read where it computes the same, on this kind of machine with "
            "this version of JAX; --entropy=static reads alike everywhere"
        )

    medium, tally = opened.medium, _Tally(opened.medium)

    def work(xs: list[np.ndarray]) -> Iterator[tuple[bytes, tuple[int, ...]]]:
        packed = opened.compress_all(xs, entropy=entropy, quality=quality)
        yield from zip(packed, map(medium.shape, xs), strict=True)

    def write(result: tuple[bytes, tuple[int, ...]], path: Path) -> None:
        data, shape = result
        files.write(data, path)
        tally.add(shape, len(data))

    change_files(
        pairs,
        read=medium.read,
        work=work,
        write=write,
        verb="compressed",
        nbytes=lambda x: medium.nbytes(medium.shape(x)),
        summary=tally.summary,
    )


def decompress(workdir: Path, *, tokenizer: Path | None = None, input: Path, output: Path) -> None:
    """`--mode=decompress`: what is in a `.vqz` file, or in each in a folder.

    Args:
      workdir, tokenizer: the run that it was compressed with.
      input, output: as for `compress`.
    """
    parallel.keep_memory()
    check_input(input)  # before anything is loaded
    opened = codec.load(workdir, tokenizer)
    pairs = pair_files(input, output, (SUFFIX,), opened.medium.suffix)
    target = pairs[0][1]
    if target != files.STDIO and (suffix := target.suffix.lower()) not in opened.medium.suffixes:
        known = " ".join(sorted(opened.medium.suffixes))
        raise UserError(f"--output={output}: {suffix} is no format that is written ({known})")

    medium, tally = opened.medium, _Tally(opened.medium)

    def read(path: Path) -> tuple[np.ndarray, tuple[int, ...], int]:
        data = files.read(path)
        return *opened.read(data), len(data)

    def work(items: list[Any]) -> Iterator[tuple[np.ndarray, tuple[int, ...], int]]:
        all_codes, shapes, sizes = zip(*items, strict=True)
        yield from zip(medium.decode(all_codes, shapes), shapes, sizes, strict=True)

    def write(result: tuple[np.ndarray, tuple[int, ...], int], path: Path) -> None:
        x, shape, size = result
        medium.write(x, path)
        tally.add(shape, size)

    change_files(
        pairs,
        read=read,
        work=work,
        write=write,
        verb="decompressed",
        nbytes=lambda item: medium.nbytes(item[1]),
        summary=tally.summary,
    )


class _Tally:
    """Counts what has been compressed, or decompressed, and tells of it."""

    def __init__(self, medium: Medium):
        self._medium, self._started = medium, time.perf_counter()
        self._files = self._plain = self._small = self._units = 0

    def add(self, shape: tuple[int, ...], size: int) -> None:
        """Counts a file: the shape of what is compressed, and the bytes it takes compressed."""
        self._files, self._units = self._files + 1, self._units + math.prod(shape)
        self._plain, self._small = self._plain + self._medium.nbytes(shape), self._small + size

    def summary(self) -> str:
        """What is shown under way, and at the end."""
        if not self._files:
            return ""
        seconds, unit = time.perf_counter() - self._started, self._medium.unit
        return (
            f"{self._plain:,} bytes uncompressed, {self._small:,} compressed, "
            f"{8 * self._small / self._units:.3f} bits a {unit}; "
            f"{self._plain / self._small:.1f} times smaller, {self._files / seconds:.1f} files/s, "
            f"{self._units / seconds:,.0f} {unit}s/s"
        )


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
        indices = track(range(0, len(source), step), "counting training codes")
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

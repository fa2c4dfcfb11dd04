"""Compresses files to `.vqz` files, and decompresses them."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vq_jax import codec, files, modalities
from vq_jax import config as configs
from vq_jax.codec import Codec, counts
from vq_jax.codec.bitstream import SUFFIX
from vq_jax.codec.codec import Content
from vq_jax.console import stderr, track
from vq_jax.errors import UserError
from vq_jax.runs import is_built_in, tokenizer_folder
from vq_jax.tasks.files import change_files, check_input, check_output, each, pair_files
from vq_jax.tasks.tokenize import encoded, prepared
from vq_jax.training import parallel

# Largest numbers of training examples, and of their codes, that are counted.
_COUNTED, _CODES = 4096, 2**20


def compress(
    workdir: Path,
    *,
    tokenizer: Path | None = None,
    input: Path,
    output: Path,
    entropy: str | None = None,
    quality: int | None = None,
    effort: int = 1,
    lossy: bool = False,
    data: ConfigDict | None = None,
) -> None:
    """`--mode=compress`: compresses a file, or each file in a folder, to `.vqz`.

    Args:
      workdir: a tokenizer's run, or a prior's, which then codes the codes.
      tokenizer: the tokenizer's run, if it is not the one in the prior's config.
      input: a file, or a folder whose tree is mirrored in `output`.
      output: the file, or folder, to write.
      entropy, quality, effort, lossy: see `Codec.compress`.
      data: a section `data` whose examples are counted for "static", instead of the run's own.

    Raises:
      UserError: there is no such run or file, or a file could not be compressed.
    """
    parallel.disable_malloc_trim()
    check_input(input)  # fail early
    opened = codec.load(workdir, tokenizer)
    if data is not None and opened.has_context:
        raise UserError("data is for counts of codes: the codes of this model take none")
    counts_codes = not opened.has_context and (
        entropy == "static" or data is not None or not (entropy or "prior" in opened.models)
    )
    # Counts that are still missing are no error.
    known = None if counts_codes and entropy == "static" else entropy
    opened.check(known, quality, lossy, effort)
    modality, tiler = opened.tokenizer.modality, opened.tiler
    # Files of any kind keep their names, so that they come back under them.
    name = None if modality.suffixes else lambda path: path.name + SUFFIX
    pairs = pair_files(
        input, output, modality.suffixes, SUFFIX, modality.noun, name, modality.is_one
    )
    if (suffix := pairs[0][1].suffix.lower()) in modalities.data_suffixes():
        raise UserError(f"output: {output} would be a {SUFFIX} file with the suffix {suffix}")
    if counts_codes:
        _count(opened, tokenizer_folder(workdir, tokenizer), data, entropy == "static")
    if (advice := opened.portable_instead(entropy, lossy)) is not None:
        stderr(
            "coded by the probabilities of a model: it can be read on this kind of machine with this "
            f"version of JAX; {advice} can be read everywhere"
        )

    tally = _Tally(opened)

    def pack(xs: list[Any]) -> Iterator[tuple[bytes, tuple[int, ...]]]:
        packed = opened.compress_all(
            xs, entropy=entropy, quality=quality, effort=effort, lossy=lossy
        )
        yield from zip(packed, map(tiler.shape, xs), strict=True)

    def write(result: tuple[bytes, tuple[int, ...]], path: Path) -> None:
        data, shape = result
        files.write(data, path)
        tally.add(shape, len(data))

    change_files(
        pairs,
        read=lambda path: modality.read(path, opened.tokenizer.config.data),
        work=lambda xs: each(xs, pack),
        write=write,
        verb="compressed",
        nbytes=lambda x: tiler.nbytes(tiler.shape(x)),
        summary=tally.summary,
    )


def decompress(
    workdir: Path,
    *,
    tokenizer: Path | None = None,
    input: Path,
    output: Path,
    salvage: bool = False,
) -> None:
    """`--mode=decompress`: decompresses a `.vqz` file, or each in a folder.

    Args:
      workdir, tokenizer: the run that it was compressed with.
      input, output: as for `compress`.
      salvage: whether the undamaged tiles of a damaged file are decompressed, see `Codec.open`.

    Raises:
      UserError: there is no such run or file, or a file could not be decompressed.
    """
    parallel.disable_malloc_trim()
    check_input(input)  # fail early
    opened = codec.load(workdir, tokenizer)
    modality, tiler = opened.tokenizer.modality, opened.tiler
    name = None if modality.suffixes else lambda path: path.stem
    pairs = pair_files(input, output, (SUFFIX,), modality.suffix, f"{SUFFIX} file", name)
    check_output(pairs[0][1], modality.writes)

    tally = _Tally(opened)

    def read(path: Path) -> tuple[Content, int]:
        data = files.read(path)
        content = opened.open(data, salvage)
        if content.damaged:
            stderr(f"{path}: damaged: {opened.describe(content)}")
        return content, len(data)

    def unpack(items: list[tuple[Content, int]]) -> Iterator[tuple[Any, int]]:
        contents, sizes = zip(*items, strict=True)
        yield from zip(opened.decode(contents), sizes, strict=True)

    def write(result: tuple[Any, int], path: Path) -> None:
        x, size = result
        modality.write(x, path)
        tally.add(tiler.shape(x), size)

    change_files(
        pairs,
        read=read,
        work=lambda items: each(items, unpack),
        write=write,
        verb="decompressed",
        nbytes=lambda item: tiler.nbytes(item[0].shape),
        summary=tally.summary,
    )


class _Tally:
    """Sums the sizes of files before and after compression."""

    def __init__(self, opened: Codec):
        self._tiler, self._unit = opened.tiler, opened.tokenizer.modality.unit
        self._started = time.perf_counter()
        self._files = self._plain = self._small = self._units = 0

    def add(self, shape: tuple[int, ...], size: int) -> None:
        """Adds a file, by the sizes of its example and its compressed bytes."""
        self._files, self._units = self._files + 1, self._units + self._tiler.units(shape)
        self._plain, self._small = self._plain + self._tiler.nbytes(shape), self._small + size

    def summary(self) -> str:
        """Returns the line that is shown during the work and at its end."""
        if not self._files:
            return ""
        seconds, unit = time.perf_counter() - self._started, self._unit
        return (
            f"{self._plain:,} bytes uncompressed, {self._small:,} compressed, "
            f"{8 * self._small / max(1, self._units):.3f} bits a {unit}; "
            f"{self._plain / self._small:.1f} times smaller, {self._files / seconds:.1f} files/s, "
            f"{self._units / seconds:,.0f} {unit}s/s"
        )


def _count(opened: Codec, folder: Path, data: ConfigDict | None, needed: bool) -> None:
    """Counts the training codes, once a run, and writes the counts into the tokenizer's folder.

    Args:
      opened: the codec that gets the counts.
      folder: of the tokenizer.
      data: a section `data` to count on; None is the run's own.
      needed: whether missing data are an error, or only a notice.
    """
    path = folder / counts.FILE
    if is_built_in(folder):
        if needed:
            raise UserError(
                f"tokenizer {folder} has no folder for counts of codes: use entropy='fixed'"
            )
        return
    if files.ships(folder) and "static" not in opened.models:
        if needed or data is not None:
            raise UserError(
                f"{folder.name} ships without counts of codes, and nothing is written into its folder: use "
                "entropy='fixed'"
            )
        return
    if "static" in opened.models:
        if data is not None and data.to_dict() != opened.tokenizer.config.data.to_dict():
            raise UserError(
                f"{path} already exists, and files are coded by it: remove it to count others"
            )
        return
    config = opened.tokenizer.config.copy_and_resolve_references()
    try:
        configs.use_data(config, data)
        if not needed and data is None and config.data.source.startswith("tfds:"):
            raise UserError(
                f"{config.data.source} may have to be downloaded: give entropy='static'"
            )
        source = modalities.open_source(config).train
        most = max(1, min(_COUNTED, _CODES // opened.tokenizer.codes.length))
        step = max(1, -(-len(source) // most))
        indices = track(range(0, len(source), step), "counting training codes")
        examples = prepared(config, source, indices)
        codes = (codes for codes, _, _ in encoded(opened.tokenizer, examples))
        found = counts.count_codes(opened.tokenizer, codes)
        if not found.any():
            raise UserError("there are no training examples: give data with others")
        counts.save(folder, opened.tokenizer, found)
        # If several processes count at once, all use the counts that were saved last.
        saved = counts.read(folder, opened.tokenizer)
        found = found if saved is None else saved
    except UserError as e:
        if needed or data is not None:
            raise UserError(f"the training codes cannot be counted: {e}") from e
        stderr(f"coded at fixed width: the training codes cannot be counted ({e})")
        return
    opened.add_counts(found)
    stderr(f"counted {found.sum():,} training codes into {path}, which is now part of the model")

"""Commands from files to files: one into one, or a folder into a folder."""

import os
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from vq_jax.data.images import EXTENSIONS, read_image, save_image
from vq_jax.data.sources import find_files
from vq_jax.errors import UserError
from vq_jax.training.report import stderr


def check_input(input: Path) -> None:
    """Raises UserError where there is no such --input."""
    if not input.exists():
        raise UserError(f"there is no {input}: --input takes a file or a folder of files")


def pair_files(
    input: Path, output: Path, suffixes: Collection[str] = EXTENSIONS, to: str = ".png"
) -> list[tuple[Path, Path]]:
    """Each file to read, and the one to write of it.

    Args:
      input: a file, or a folder whose tree of files is mirrored in `output`.
      output: the file, or folder, to write.
      suffixes: of the files that are read of a folder; by default those of images.
      to: the suffix of what is written where no file is named.

    Raises:
      UserError: there is no such input, or something would be written among the originals.
    """
    check_input(input)
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


def place_of(pairs: list[tuple[Path, Path]]) -> str:
    """Where the files to write lie: the file, or what folder they share."""
    places = [str(target) for _, target in pairs]
    return places[0] if len(places) == 1 else os.path.commonpath(places)


def change_files(
    pairs: list[tuple[Path, Path]],
    channels: int,
    change: Callable[[np.ndarray], np.ndarray],
    verb: str,
) -> None:
    """Reads each image, uint8 [H, W, channels], and writes what `change` makes of it.

    Of many, one that cannot be read or changed is named, and the others are done.

    Args:
      pairs: from `pair_files`.
      channels: 1 or 3.
      change: an image to an image.
      verb: what is said to have been done.
    """
    done, failed = 0, []
    for source, target in pairs:
        try:
            result = change(read_image(source, channels))
        except UserError as e:
            if len(pairs) == 1:
                raise
            failed.append(f"{source}: {e}")
            continue
        save_image(result, target)
        done += 1
    for line in failed:
        stderr(f"skipped: {line}")
    if not done:
        raise UserError(f"none of the {len(pairs)} images could be {verb}")
    print(f"{verb} {done} of {len(pairs)} images into {place_of(pairs)}")

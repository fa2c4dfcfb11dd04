"""Runs images of any size through a trained tokenizer."""

from pathlib import Path

import numpy as np

from vq_jax.data.images import read_image, rows_of, save_image, to_float, to_uint8
from vq_jax.data.sources import find_images
from vq_jax.errors import UserError
from vq_jax.tokenizer import TrainedTokenizer, load
from vq_jax.training.report import stderr


def reconstruct(workdir: Path, *, input: Path, output: Path, side_by_side: bool) -> None:
    """`--mode=reconstruct`: writes the reconstruction of an image, or of each image in a folder.

    Args:
      workdir: the run's folder.
      input: an image file, or a folder whose tree of images is mirrored in `output`.
      output: the file, or folder, to write.
      side_by_side: put the original to the left of the reconstruction.
    """
    if not input.exists():
        raise UserError(f"there is no {input}: --input takes an image or a folder of images")
    tokenizer = load(workdir)
    channels = tokenizer.config.data.channels
    if input.is_dir() and output.is_file():
        raise UserError(f"--input={input} is a folder, and --output={output} a file: name a folder")
    if input.is_dir():
        pairs = [
            (p, (output / p.relative_to(input)).with_suffix(".png")) for p in find_images(input)
        ]
        if len({target for _, target in pairs}) < len(pairs):  # a.jpg beside a.png: keep both
            pairs = [(p, target.with_name(p.name + ".png")) for p, target in pairs]
    else:
        into_folder = output.is_dir() or not output.suffix
        pairs = [(input, output / f"{input.stem}.png" if into_folder else output)]

    inputs = {source.resolve() for source, _ in pairs}
    inside = input.is_dir() and output.resolve().is_relative_to(input.resolve())
    if inside or any(target.resolve() in inputs for _, target in pairs):
        raise UserError(f"--output={output} would write among the originals: name another place")
    done, failed = 0, []
    for source, target in pairs:
        try:
            image = read_image(source, channels)
        except UserError as e:
            if len(pairs) == 1:
                raise
            failed.append(str(e))
            continue
        result = reconstruct_image(tokenizer, image)
        if side_by_side:
            result = rows_of(np.stack([image, result]))
        save_image(result, target)
        done += 1
    for line in failed:
        stderr(f"skipped: {line}")
    if not done:
        raise UserError(f"none of the {len(pairs)} images of {input} could be read")
    place = output if input.is_dir() else pairs[0][1]
    print(f"reconstructed {done} of {len(pairs)} images into {place}")


def reconstruct_image(tokenizer: TrainedTokenizer, image: np.ndarray) -> np.ndarray:
    """One image of any size through a tokenizer.

    A convolutional tokenizer takes the image whole, mirrored at its bottom and right edges to a
    multiple of the tokenizer's factor; one of fixed size takes it in tiles.

    Args:
      image: uint8 [H, W, C].

    Returns:
      uint8 [H, W, C].
    """
    height, width = image.shape[:2]
    side = tokenizer.factor or tokenizer.config.data.resolution
    x = to_float(_mirror_pad(image, -height % side, -width % side))
    if tokenizer.factor:
        y = np.asarray(tokenizer.reconstruct(x[None]))[0]
    else:
        rows, columns = x.shape[0] // side, x.shape[1] // side
        tiles = x.reshape(rows, side, columns, side, -1).swapaxes(1, 2)
        tiles = np.asarray(tokenizer.reconstruct(tiles.reshape(-1, *tiles.shape[2:])))
        tiles = tiles.reshape(rows, columns, side, side, -1)
        y = tiles.swapaxes(1, 2).reshape(x.shape)
    return to_uint8(y[:height, :width])


def _mirror_pad(image: np.ndarray, bottom: int, right: int) -> np.ndarray:
    """Mirrors the image over its lower and right edges, as often as that takes."""
    return np.pad(image, ((0, bottom), (0, right), (0, 0)), mode="symmetric")

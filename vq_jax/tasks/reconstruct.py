"""Runs images of any size through a trained tokenizer."""

from pathlib import Path

import numpy as np

from vq_jax.data.images import mirror_pad, rows_of, to_float, to_uint8
from vq_jax.tasks.files import change_files, pair_files
from vq_jax.tokenizer import TrainedTokenizer, load


def reconstruct(workdir: Path, *, input: Path, output: Path, side_by_side: bool) -> None:
    """`--mode=reconstruct`: writes the reconstruction of an image, or of each image in a folder.

    Args:
      workdir: the run's folder.
      input: an image file, or a folder whose tree of images is mirrored in `output`.
      output: the file, or folder, to write.
      side_by_side: put the original to the left of the reconstruction.
    """
    pairs = pair_files(input, output)  # what is wrong with them is said before anything is loaded
    tokenizer = load(workdir)

    def change(image: np.ndarray) -> np.ndarray:
        result = reconstruct_image(tokenizer, image)
        return rows_of(np.stack([image, result])) if side_by_side else result

    change_files(pairs, tokenizer.config.data.channels, change, "reconstructed")


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
    x = to_float(mirror_pad(image, side))
    if tokenizer.factor:
        y = np.asarray(tokenizer.reconstruct(x[None]))[0]
    else:
        rows, columns = x.shape[0] // side, x.shape[1] // side
        tiles = x.reshape(rows, side, columns, side, -1).swapaxes(1, 2)
        tiles = np.asarray(tokenizer.reconstruct(tiles.reshape(-1, *tiles.shape[2:])))
        tiles = tiles.reshape(rows, columns, side, side, -1)
        y = tiles.swapaxes(1, 2).reshape(x.shape)
    return to_uint8(y[:height, :width])

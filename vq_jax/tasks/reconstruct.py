"""Runs images of any size through a trained tokenizer."""

from pathlib import Path

import numpy as np

from vq_jax.data.images import rows_of
from vq_jax.tasks.files import change_images, pair_files
from vq_jax.tiles import ImageTiles
from vq_jax.tokenizer import TrainedTokenizer, load


def reconstruct(workdir: Path, *, input: Path, output: Path, side_by_side: bool = False) -> None:
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

    change_images(pairs, tokenizer.config.data.channels, change, "reconstructed")


def reconstruct_image(tokenizer: TrainedTokenizer, image: np.ndarray) -> np.ndarray:
    """One image of any size, uint8 [H, W, C], through a tokenizer; see `tiles.ImageTiles`."""
    medium = ImageTiles(tokenizer)
    return next(medium.decode(medium.encode([image]), [image.shape[:2]]))

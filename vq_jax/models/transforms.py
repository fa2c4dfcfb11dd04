"""Linear transforms that models of pixels start from."""

import itertools

import jax
import numpy as np

# Orthonormal: grey, red against blue, and green against both.
_COLOURS = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
_COLOUR_VARIANCES = (1.0, 0.15, 0.1)  # of natural images, roughly, grey being 1


def to_patches(x: jax.Array, side: int) -> jax.Array:
    """Turns squares of pixels into channels: [..., H, W, C] to [..., H / side, W / side, side * side * C].

    Raises:
      ValueError: the sides are no multiples of `side`.
    """
    *lead, h, w, c = x.shape
    if h % side or w % side:
        raise ValueError(f"an image of {w}x{h} pixels does not divide into patches of {side}")
    x = x.reshape(-1, h // side, side, w // side, side, c).swapaxes(2, 3)
    return x.reshape(*lead, h // side, w // side, side * side * c)


def from_patches(x: jax.Array, side: int) -> jax.Array:
    """Inverts `to_patches`."""
    *lead, h, w, c = x.shape
    x = x.reshape(-1, h, w, side, side, c // side**2).swapaxes(2, 3)
    return x.reshape(*lead, h * side, w * side, c // side**2)


def cosine_basis(sizes: tuple[int, ...], channels: int, dim: int) -> np.ndarray:
    """Returns the low frequencies of the discrete cosine transform (DCT-II) of blocks, and of their colours.

    Frequencies are in the order of the variances that natural images have, roughly 1 / f^2.

    Args:
      sizes: elements of a block along each axis, such as (8, 8).
      channels: 3 (red, green, blue), or any other number, which are then transformed alone.
      dim: number of frequencies; at most `channels` times the elements of a block.

    Returns:
      float32 [channels * elements, dim], orthonormal columns, whose sum of squares is 1. Rows are those of a
      block flattened with its channels last.

    Raises:
      ValueError: a block has fewer elements.
    """
    total = channels * int(np.prod(sizes))
    if dim > total:
        raise ValueError(f"a block of {total} values has no {dim} frequencies")
    colours = _COLOURS if channels == 3 else np.eye(channels)
    weights = _COLOUR_VARIANCES if channels == 3 else np.ones(channels)
    found = []
    for *frequencies, colour in itertools.product(*map(range, sizes), range(channels)):
        squared = sum((f / size) ** 2 for f, size in zip(frequencies, sizes, strict=True))
        found.append((-weights[colour] / (squared + 0.25 / max(sizes) ** 2), frequencies, colour))
    columns = []
    for _, frequencies, colour in sorted(found)[:dim]:
        wave = np.ones(())
        for f, size in zip(frequencies, sizes, strict=True):
            phase = np.cos(np.pi * f * (np.arange(size) + 0.5) / size)
            wave = np.multiply.outer(wave, phase / np.linalg.norm(phase))
        columns.append(np.multiply.outer(wave, colours[colour]).reshape(-1))
    return np.stack(columns, axis=1).astype(np.float32)

"""JPEG, WebP and AVIF by Pillow, to compare with at equal bytes."""

import io
from typing import Any

import numpy as np
from PIL import Image, features

from vq_jax.errors import UserError

# name -> (settings, largest quality)
FORMATS: dict[str, tuple[dict[str, Any], int]] = {
    "JPEG": ({"format": "JPEG", "optimize": True, "progressive": True}, 95),
    "WebP": ({"format": "WEBP", "method": 6}, 100),
    "AVIF": ({"format": "AVIF"}, 100),
}


def available() -> list[str]:
    """Returns the names of those formats that this build of Pillow writes."""
    return [name for name in FORMATS if name == "JPEG" or features.check(name.lower())]


def encode(name: str, image: np.ndarray, quality: int) -> bytes:
    """Encodes an image uint8 [H, W, C] to a file.

    Raises:
      UserError: the format does not have images of this size.
    """
    file = io.BytesIO()
    plain = image[..., 0] if image.shape[-1] == 1 else image
    try:
        Image.fromarray(plain).save(file, quality=quality, **FORMATS[name][0])
    except (OSError, ValueError) as e:
        height, width = image.shape[:2]
        raise UserError(f"{name} cannot have an image of {width}x{height} pixels: {e}") from e
    return file.getvalue()


def decode(data: bytes, channels: int = 3) -> np.ndarray:
    """Decodes a file to an image uint8 [H, W, channels]."""
    with Image.open(io.BytesIO(data)) as opened:
        image = np.asarray(opened.convert("L" if channels == 1 else "RGB"))
    return image.reshape(*image.shape[:2], channels)


def at_most(name: str, image: np.ndarray, size: int) -> tuple[int, bytes]:
    """Encodes an image at the highest quality with a file of at most `size` bytes, or at the lowest.

    Args:
      name: in `FORMATS`.
      image: uint8 [H, W, C].
      size: in bytes.

    Returns:
      the quality, and the file, which is larger than `size` if no file of the format is smaller.

    Raises:
      UserError: see `encode`.
    """
    low, high = 0, FORMATS[name][1]
    while low < high:
        middle = (low + high + 1) // 2
        fits = len(encode(name, image, middle)) <= size
        low, high = (middle, high) if fits else (low, middle - 1)
    return low, encode(name, image, low)

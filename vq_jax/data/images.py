"""Image files and arrays: reading, fitting to a square, showing side by side, writing."""

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from vq_jax.errors import UserError
from vq_jax.files import writing

EXTENSIONS = frozenset(
    [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".ppm", ".pgm"]
)


_STRIP = 512  # rows


def decode(file: str | Path | BinaryIO, min_side: int = 0) -> np.ndarray:
    """Decodes any image Pillow reads to uint8 [H, W, 3], upright, transparency over white.

    Args:
      file: a path or an open file.
      min_side: a JPEG may be decoded at a fraction of its size, its sides no smaller than this;
        0 always decodes it whole.

    Raises:
      OSError, SyntaxError, ValueError: it is not an image, or a damaged one.
    """
    with Image.open(file) as opened:
        if min_side:
            opened.draft("RGB", (min_side, min_side))
        opened.load()
        ImageOps.exif_transpose(opened, in_place=True)
        image: Image.Image = opened
        if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion would clip them at 255
            image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
        if image.has_transparency_data:
            canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
            canvas.alpha_composite(image.convert("RGBA"))
            image = canvas
        if image.mode != "RGB":
            image = image.convert("RGB")
        # Strip by strip: at once, Pillow would hold an image of any size two times more.
        array = np.empty((image.height, image.width, 3), np.uint8)
        for top in range(0, image.height, _STRIP):
            bottom = min(top + _STRIP, image.height)
            array[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
        return array


def read_image(path: Path, channels: int = 3) -> np.ndarray:
    """Reads an image file to uint8 [H, W, channels]; a UserError names one that can't be read."""
    try:
        with (
            warnings.catch_warnings()
        ):  # of 90 megapixels Pillow warns, of twice as many it refuses
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return with_channels(decode(path), channels)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        raise UserError(f"cannot read {path} as an image: {e}") from e


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """uint8 [H, W] or [H, W, 1 or 3] to uint8 [H, W, channels], by luma or by repetition."""
    if image.ndim == 2:
        image = image[..., None]
    if image.shape[-1] == channels:
        return image
    if channels == 1:
        return np.asarray(Image.fromarray(image).convert("L"))[..., None]
    return np.repeat(image, channels, axis=-1)


def fit(
    image: np.ndarray,
    resolution: int,
    resize: int,
    rng: np.random.Generator | None = None,
    random_crop: bool = False,
    flip: bool = False,
) -> np.ndarray:
    """Resizes, crops to a square and flips.

    Args:
      image: uint8 [H, W, C].
      resolution: side of the result.
      resize: side the shorter one is brought to first; 0 leaves the image as large as it is, but
        for one too small to hold the square.
      rng: draws crop and flip; None crops the centre and flips nothing.
      random_crop: draw the crop's place.
      flip: mirror every other image.

    Returns:
      uint8 [resolution, resolution, C].
    """
    height, width = image.shape[:2]
    shorter = min(height, width)
    target = max(resize or shorter, resolution)
    if target != shorter:
        # ceil, so that rounding never leaves a side one pixel short of the square
        size = (-(-width * target // shorter), -(-height * target // shorter))
        squeezed = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        image = np.asarray(squeezed.resize(size, Image.Resampling.LANCZOS))
        image = image.reshape(size[1], size[0], -1)
    free_y, free_x = image.shape[0] - resolution, image.shape[1] - resolution
    y, x = free_y // 2, free_x // 2
    if rng is not None and random_crop:
        y, x = int(rng.integers(free_y + 1)), int(rng.integers(free_x + 1))
    image = image[y : y + resolution, x : x + resolution]
    if rng is not None and flip and rng.random() < 0.5:
        image = image[:, ::-1]
    return image


def mirror_pad(array: np.ndarray, multiple: int, least: int = 0) -> np.ndarray:
    """Mirrors an image or mask [H, W, ...] over its lower and right edges, as often as that takes.

    Args:
      array: the image or mask.
      multiple: both sides are brought to the next multiple of it,
      least: or to this, if that is more.
    """
    more = [max(least, -(-side // multiple) * multiple) - side for side in array.shape[:2]]
    return np.pad(array, [(0, n) for n in more] + [(0, 0)] * (array.ndim - 2), mode="symmetric")


def to_float(image: np.ndarray) -> np.ndarray:
    """uint8 in [0, 255] to float32 in [-1, 1]."""
    return image.astype(np.float32) / 127.5 - 1.0


def to_uint8(image: np.ndarray) -> np.ndarray:
    """float in [-1, 1], clipped, to uint8 in [0, 255]."""
    return np.round((np.clip(image, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)


def save_image(image: np.ndarray, path: Path) -> None:
    """Writes uint8 [H, W, 1 or 3] in the format the suffix names; nothing half-written is left.

    Raises:
      UserError: the format is not known or the file cannot be written.
    """
    with writing(path) as temporary:
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(temporary)


def rows_of(*rows: np.ndarray, gap: int = 2) -> np.ndarray:
    """Lays rows of images out as one picture.

    Args:
      *rows: uint8 [N, H, W, C] each; row i of the picture shows the images of rows[i].
      gap: white pixels between images.

    Returns:
      uint8 [rows * (H + gap) - gap, N * (W + gap) - gap, C].
    """
    lines = []
    for row in rows:
        padded = np.pad(row, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
        lines.append(np.concatenate(list(padded), axis=1))
    return np.concatenate(lines, axis=0)[:-gap, :-gap]

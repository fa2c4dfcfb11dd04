"""Images as files and arrays: reads, resizes, crops, arranges and writes them."""

import functools
import io
import math
import threading
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from vq_jax.errors import UserError
from vq_jax.files import STDIO, free_memory, read, writing

EXTENSIONS = frozenset(
    [
        ".png",
        ".jpg",
        ".jpeg",
        ".jfif",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".avif",
        ".ppm",
        ".pgm",
    ]
)
# Formats that change pixels slightly, and formats without transparency.
LOSSY = frozenset([".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".gif"])
_OPAQUE = frozenset([".jpg", ".jpeg", ".jfif", ".bmp", ".ppm", ".pgm"])

_STRIP = 2**23  # pixels converted at a time
_BYTES_A_PIXEL = 8  # memory for reading an image, at most
# Descriptions of ICC profiles that are sRGB; others with "sRGB" in their name may be linear.
_SRGB = frozenset(
    [
        "srgb",
        "srgb built-in",
        "srgb iec61966-2.1",
        "srgb iec61966-2-1 black scaled",
        "srgb2014",
        "c2",
    ]
)
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # by number of channels
_limit = threading.Lock()


def decode(
    file: str | Path | BinaryIO,
    min_side: int = 0,
    *,
    alpha: bool = False,
    most_pixels: int | None = None,
) -> np.ndarray:
    """Decodes any image that Pillow reads to uint8 [H, W, 3] in sRGB.

    Applies the Exif orientation and an embedded ICC profile. Puts transparent images on white.
    Scales floats and wide integers to [0, 255]; see `_eight_bits`.

    Args:
      file: a path or an open file.
      min_side: a JPEG may be decoded at a fraction of its size, with sides of at least this number
        of pixels; 0 decodes it at its full size.
      alpha: whether to keep transparency: an image that has it is returned as uint8 [H, W, 4].
      most_pixels: largest number of pixels; None is no limit.

    Raises:
      OSError, SyntaxError, ValueError: the file is not an image, is damaged, has too many pixels, or needs more
        memory than is free.
    """
    with _open(file) as opened:
        if most_pixels is not None and math.prod(opened.size) > most_pixels:
            raise ValueError(
                f"it has {math.prod(opened.size) / 1e6:.0f} megapixels, and at most {most_pixels / 1e6:.0f} are taken"
            )
        if min_side:
            opened.draft("RGB", (min_side, min_side))
        _check_memory(*opened.size)
        opened.load()
        ImageOps.exif_transpose(opened, in_place=True)
        profile = opened.info.get("icc_profile")
        image: Image.Image = opened
        if image.mode.startswith(("I", "F")):  # Pillow's own conversion clips at 255.
            image = Image.fromarray(_eight_bits(np.asarray(image)))
        if image.has_transparency_data:
            grey = image.mode == "LA"
            image = image.convert("RGBA")
            if profile:
                colours = _to_srgb(image.convert("L" if grey else "RGB"), profile).convert("RGB")
                colours.putalpha(image.getchannel("A"))
                image = colours
            if not alpha:
                canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
                canvas.alpha_composite(image)
                image = canvas
        elif profile:
            image = _to_srgb(image, profile)
        mode = "RGBA" if alpha and image.mode == "RGBA" else "RGB"
        if image.mode != mode:
            image = image.convert(mode)
        # In strips, since Pillow holds two more copies of what it converts.
        array = np.empty((image.height, image.width, len(mode)), np.uint8)
        rows = max(1, _STRIP // image.width)
        for top in range(0, image.height, rows):
            bottom = min(top + rows, image.height)
            array[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
        return array


def _open(file: str | Path | BinaryIO) -> Image.Image:
    """Calls `Image.open` without Pillow's limit on pixels, which `_check_memory` replaces.

    Raises:
      UnidentifiedImageError: it is no image, or EPS, which is a program that Pillow lets Ghostscript run.
    """
    with _limit:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            opened = Image.open(file)
        finally:
            Image.MAX_IMAGE_PIXELS = before
    if opened.format == "EPS":
        opened.close()
        raise UnidentifiedImageError("EPS files are programs, which are not run")
    return opened


def _check_memory(width: int, height: int) -> None:
    """Raises ValueError for an image that does not fit into the free memory."""
    needed = _BYTES_A_PIXEL * width * height
    if needed > 2**30 and needed > (free := free_memory()):
        raise ValueError(
            f"an image of {width}x{height} pixels takes {needed / 2**30:.1f} GiB of memory, and "
            f"{free / 2**30:.1f} GiB are free"
        )


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Scales numbers to uint8 in [0, 255].

    Args:
      values: floats in [0, 1], [0, 255] or [0, 65535], or integers in [0, 255] or [0, 65535]. The
        maximum selects the range. Floats up to 2 count as [0, 1], because a resampled image may
        overshoot.
    """
    if values.dtype.kind != "f":
        wide = values.dtype.itemsize == 2 or values.max(initial=0) > 255
        return (values.clip(0, 65535) // 257 if wide else values.clip(0, 255)).astype(np.uint8)
    largest = values.max(initial=0.0, where=np.isfinite(values))
    scale = 255.0 if largest <= 2.0 else 1.0 if largest <= 256.0 else 1 / 257.0
    values = np.nan_to_num(values, posinf=largest, neginf=0.0)
    return np.round((values * scale).clip(0, 255)).astype(np.uint8)


@functools.lru_cache(maxsize=64)
def _profile(data: bytes) -> tuple[ImageCms.ImageCmsProfile | None, str]:
    """Reads an ICC profile and its colour space; (None, "") if it is sRGB or cannot be read."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        if ImageCms.getProfileDescription(profile).strip().lower() in _SRGB:
            return None, ""
        return profile, profile.profile.xcolor_space.strip()
    except (ImageCms.PyCMSError, OSError):
        return None, ""


@functools.lru_cache(maxsize=1)
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _to_srgb(image: Image.Image, data: bytes) -> Image.Image:
    """Converts the colours of an image without transparency to sRGB.

    Args:
      image: the image; it is changed in place if its mode is RGB.
      data: its ICC profile. The image is returned unchanged if the profile does not apply to it.
    """
    profile, space = _profile(data)
    if profile is None:
        return image
    if space == "RGB" and image.mode != "RGB":
        image = image.convert("RGB")  # a palette image
    if {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(space) != image.mode:
        return image
    try:
        if image.mode == "RGB":  # In place, since a copy of a large image takes much memory.
            ImageCms.profileToProfile(image, profile, _srgb(), inPlace=True)
            return image
        converted = ImageCms.profileToProfile(image, profile, _srgb(), outputMode="RGB")
        return image if converted is None else converted
    except ImageCms.PyCMSError:
        return image


def read_image(
    path: Path, channels: int = 3, *, alpha: bool = False, most_pixels: int | None = None
) -> np.ndarray:
    """Reads an image file to uint8 [H, W, channels].

    Args:
      path: the file; `STDIO` is standard input.
      channels: number of colour channels, 1 or 3.
      alpha: whether an image with transparency gets one more channel, its opacity.
      most_pixels: see `decode`.

    Raises:
      UserError: it cannot be read.
    """
    try:
        # Pillow seeks, which is impossible in a pipe.
        is_pipe = path == STDIO or (path.exists() and not path.is_file() and not path.is_dir())
        source = io.BytesIO(read(path)) if is_pipe else path
        image = decode(source, alpha=alpha, most_pixels=most_pixels)
    except UnidentifiedImageError as e:
        raise UserError(
            f"cannot read {path} as an image: it is empty, or has no known format"
        ) from e
    except (OSError, SyntaxError, ValueError, MemoryError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else e
        raise UserError(f"cannot read {path} as an image: {reason}") from e
    if image.shape[-1] == 4:
        return np.concatenate([with_channels(image[..., :3], channels), image[..., 3:]], axis=-1)
    return with_channels(image, channels)


def over_white(image: np.ndarray, channels: int) -> np.ndarray:
    """Puts an image with transparency on white.

    Args:
      image: uint8 [H, W, channels], or [H, W, channels + 1] with opacity as the last channel.
      channels: number of colour channels.

    Returns:
      uint8 [H, W, channels].
    """
    if image.shape[-1] == channels:
        return image
    opacity = image[..., channels:].astype(np.float32) / 255.0
    return np.round(image[..., :channels] * opacity + 255.0 * (1.0 - opacity)).astype(np.uint8)


def read_mask(path: Path) -> tuple[np.ndarray, str]:
    """Reads a mask from an image file.

    White pixels are the mask. In an image with transparency, the white pixels are the mask if all
    opaque pixels are white; otherwise, the transparent pixels are.

    Returns:
      bool [H, W], True in the mask; the kind of pixels that are the mask: "white", "painted white"
      or "transparent".

    Raises:
      UserError: it cannot be read.
    """
    image = read_image(path, 1, alpha=True)
    white = image[..., 0] > 127
    if image.shape[-1] == 1 or (opaque := image[..., 1] > 127).all():
        return white, "white"
    if white[opaque].all():
        return opaque, "painted white"
    return ~opaque, "transparent"


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Converts between grey and colour.

    Args:
      image: uint8 [H, W], [H, W, 1] or [H, W, 3].
      channels: 1 or 3.

    Returns:
      uint8 [H, W, channels]: the luma of a colour image, or a repeated grey channel.
    """
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
    """Resizes an image, crops a square and flips it.

    Args:
      image: uint8 [H, W, C].
      resolution: side of the square.
      resize: length of the shorter side after resizing, at least `resolution`; 0 keeps the size,
        unless the shorter side is below `resolution`.
      rng: generator for crop and flip; None crops the centre and does not flip.
      random_crop: whether to crop at a random position.
      flip: whether to mirror the image with probability 0.5.

    Returns:
      uint8 [resolution, resolution, C].
    """
    height, width = image.shape[:2]
    shorter = min(height, width)
    target = max(resize or shorter, resolution)
    if target > shorter and max(height, width) > 4 * shorter:
        image = _cut_longer_side(image, resolution, target, rng if random_crop else None)
    image = resize_shorter(image, target)
    free_y, free_x = image.shape[0] - resolution, image.shape[1] - resolution
    y, x = free_y // 2, free_x // 2
    if rng is not None and random_crop:
        y, x = int(rng.integers(free_y + 1)), int(rng.integers(free_x + 1))
    image = image[y : y + resolution, x : x + resolution]
    if rng is not None and flip and rng.random() < 0.5:
        image = image[:, ::-1]
    return image


def resize_shorter(image: np.ndarray, target: int) -> np.ndarray:
    """Resizes an image uint8 [H, W, C] until its shorter side has `target` pixels, by Lanczos."""
    height, width = image.shape[:2]
    shorter = min(height, width)
    if target == shorter:
        return image
    # Rounded up, so that no side is one pixel shorter than a square of this side.
    size = (-(-width * target // shorter), -(-height * target // shorter))
    pillow = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    resized = np.asarray(pillow.resize(size, Image.Resampling.LANCZOS))
    return resized.reshape(size[1], size[0], -1)


def _cut_longer_side(
    image: np.ndarray, resolution: int, target: int, rng: np.random.Generator | None
) -> np.ndarray:
    """Cuts a thin image along its longer side, before it is enlarged and cropped.

    Without this, the enlarged image could take any amount of memory. The part that is left is
    slightly longer than the crop.
    """
    shorter = min(image.shape[:2])
    axis = int(np.argmax(image.shape[:2]))
    length = min(image.shape[axis], shorter + 2 * -(-resolution * shorter // target) + 8)
    free = image.shape[axis] - length
    start = free // 2 if rng is None else int(rng.integers(free + 1))
    return image.take(range(start, start + length), axis=axis)


def mirror_pad(array: np.ndarray, multiple: int, least: int = 0) -> np.ndarray:
    """Pads an image or mask at the bottom and the right by mirroring it, repeatedly if necessary.

    Args:
      array: the image or mask, [H, W, ...].
      multiple: both sides are padded to the next multiple of this.
      least: smallest side of the result.
    """
    more = [max(least, -(-side // multiple) * multiple) - side for side in array.shape[:2]]
    return np.pad(array, [(0, n) for n in more] + [(0, 0)] * (array.ndim - 2), mode="symmetric")


def to_float(image: np.ndarray) -> np.ndarray:
    """Converts uint8 in [0, 255] to float32 in [-1, 1]."""
    return image.astype(np.float32) / 127.5 - 1.0


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Converts float to uint8 in [0, 255]; clips it to [-1, 1] first."""
    return np.round((np.clip(image, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)


def save_image(image: np.ndarray, path: Path) -> None:
    """Writes an image atomically, in the format of the suffix.

    Args:
      image: uint8 [H, W, C] with 1 or 3 channels, or one more for opacity. An image with
        transparency is put on white if the format has no transparency.
      path: the file to write; `STDIO` is standard output, in the PNG format.

    Raises:
      UserError: the format is not known, or the file cannot be written.
    """
    if image.shape[-1] in (2, 4) and path.suffix.lower() in _OPAQUE:
        image = over_white(image, image.shape[-1] - 1)
    mode = _MODES[image.shape[-1]]
    jpeg = path.suffix.lower() in (".jpg", ".jpeg", ".jfif")
    form = "PNG" if path == STDIO else "JPEG" if jpeg else None
    options = {"quality": 95, "subsampling": 0} if jpeg else {}
    with writing(path) as temporary:
        Image.fromarray(image[..., 0] if mode == "L" else image).save(temporary, form, **options)


def rows_of(*rows: np.ndarray, gap: int = 2) -> np.ndarray:
    """Arranges images in one picture.

    Args:
      *rows: uint8 [N, H, W, C] each, the images of one row of the picture.
      gap: number of white pixels between images.

    Returns:
      uint8 [rows * (H + gap) - gap, N * (W + gap) - gap, C].
    """
    lines = []
    for row in rows:
        padded = np.pad(row, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
        lines.append(np.concatenate(list(padded), axis=1))
    return np.concatenate(lines, axis=0)[:-gap, :-gap]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Computes the PSNR of two images uint8 [H, W, C] in dB, at most 88 for equal ones."""
    error = np.square(a.astype(np.float64) - b).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-4)))

"""Image files and arrays: reading, fitting to a square, showing side by side, writing."""

import functools
import io
import threading
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from vq_jax.errors import UserError
from vq_jax.files import STDIO, read, writing

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
# Of those that are written: what changes pixels a little, and what has no transparency.
LOSSY = frozenset([".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".gif"])
_OPAQUE = frozenset([".jpg", ".jpeg", ".jfif", ".bmp", ".ppm", ".pgm"])

_STRIP = 2**23  # pixels that are converted at a time
_BYTES_A_PIXEL = 8  # that reading takes, at the most
# What profiles of sRGB itself are called; others of its name may be linear.
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
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # by channels
_limit = threading.Lock()


def decode(file: str | Path | BinaryIO, min_side: int = 0, *, alpha: bool = False) -> np.ndarray:
    """Decodes any image Pillow reads to uint8 [H, W, 3], upright, in sRGB.

    Transparency is laid over white. Floats in [0, 1] and 16-bit integers are brought to [0, 255], and
    colours of an embedded ICC profile to sRGB.

    Args:
      file: a path or an open file.
      min_side: a JPEG may be decoded at a fraction of its size, its sides no smaller than this;
        0 always decodes it whole.
      alpha: give an image with transparency as uint8 [H, W, 4], its colours as they are.

    Raises:
      OSError, SyntaxError, ValueError: it is not an image, or a damaged one, or larger than the memory
        that is free.
    """
    with _open(file) as opened:
        if min_side:
            opened.draft("RGB", (min_side, min_side))
        _check_memory(*opened.size)
        opened.load()
        ImageOps.exif_transpose(opened, in_place=True)
        profile = opened.info.get("icc_profile")
        image: Image.Image = opened
        if image.mode.startswith(("I", "F")):  # Pillow's own conversion would clip them at 255
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
        # Strip by strip: at once, Pillow would hold an image of any size two times more.
        array = np.empty((image.height, image.width, len(mode)), np.uint8)
        rows = max(1, _STRIP // image.width)
        for top in range(0, image.height, rows):
            bottom = min(top + rows, image.height)
            array[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
        return array


def _open(file: str | Path | BinaryIO) -> Image.Image:
    """`Image.open` without Pillow's own limit of pixels: `_check_memory` has another."""
    with _limit:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file)
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _check_memory(width: int, height: int) -> None:
    """Raises ValueError for an image that would not fit into the memory that is free."""
    needed = _BYTES_A_PIXEL * width * height
    if needed > 2**30 and needed > (free := _free_memory()):
        raise ValueError(
            f"an image of {width}x{height} pixels takes {needed / 2**30:.1f} GiB of memory, and "
            f"{free / 2**30:.1f} are free"
        )


def _free_memory() -> int:
    """Bytes, or a safe guess where the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 4 * 2**30


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Floats in [0, 1], [0, 255] or [0, 65535], or integers in [0, 255] or [0, 65535], to uint8.

    A resampled image overshoots: floats up to 2 count as those of [0, 1].
    """
    if values.dtype.kind != "f":
        wide = values.dtype.itemsize == 2 or values.max(initial=0) > 255
        return (values.clip(0, 65535) // 257 if wide else values.clip(0, 255)).astype(np.uint8)
    most = values.max(initial=0.0, where=np.isfinite(values))
    scale = 255.0 if most <= 2.0 else 1.0 if most <= 256.0 else 1 / 257.0
    values = np.nan_to_num(values, posinf=most, neginf=0.0)
    return np.round((values * scale).clip(0, 255)).astype(np.uint8)


@functools.lru_cache(maxsize=64)
def _profile(data: bytes) -> tuple[ImageCms.ImageCmsProfile | None, str]:
    """An ICC profile, or None for sRGB itself and for one that cannot be read; its colour space."""
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
    """An image without transparency, its colours brought from a profile to sRGB."""
    profile, space = _profile(data)
    if profile is None:
        return image
    if space == "RGB" and image.mode != "RGB":
        image = image.convert("RGB")  # of a palette
    if {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(space) != image.mode:
        return image
    try:
        if image.mode == "RGB":  # in place: an image of any size may come here
            ImageCms.profileToProfile(image, profile, _srgb(), inPlace=True)
            return image
        made = ImageCms.profileToProfile(image, profile, _srgb(), outputMode="RGB")
        return image if made is None else made
    except ImageCms.PyCMSError:
        return image


def read_image(path: Path, channels: int = 3, *, alpha: bool = False) -> np.ndarray:
    """Reads an image file to uint8 [H, W, channels].

    Args:
      path: of the file; `STDIO` is standard input.
      channels: 1 or 3.
      alpha: give an image with transparency a channel more, for it.

    Raises:
      UserError: it cannot be read.
    """
    try:
        # Pillow seeks, which a pipe cannot.
        whole = path == STDIO or (path.exists() and not path.is_file() and not path.is_dir())
        image = decode(io.BytesIO(read(path)) if whole else path, alpha=alpha)
    except UnidentifiedImageError as e:
        raise UserError(f"cannot read {path} as an image: it is empty, or of no known kind") from e
    except (OSError, SyntaxError, ValueError, MemoryError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else e
        raise UserError(f"cannot read {path} as an image: {reason}") from e
    if image.shape[-1] == 4:
        return np.concatenate([with_channels(image[..., :3], channels), image[..., 3:]], axis=-1)
    return with_channels(image, channels)


def over_white(image: np.ndarray, channels: int) -> np.ndarray:
    """uint8 [H, W, channels], or with a channel more that is its opacity, to uint8 [H, W, channels]."""
    if image.shape[-1] == channels:
        return image
    opacity = image[..., channels:].astype(np.float32) / 255.0
    return np.round(image[..., :channels] * opacity + 255.0 * (1.0 - opacity)).astype(np.uint8)


def read_mask(path: Path) -> tuple[np.ndarray, str]:
    """Reads where to draw from an image file.

    White paint on something darker, or on nothing, marks it; of a picture with holes, the holes do.

    Returns:
      bool [H, W]; how the file was read, in words.

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
    if target > shorter and max(height, width) > 4 * shorter:
        image = _nearer_square(image, resolution, target, rng if random_crop else None)
        height, width = image.shape[:2]
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


def _nearer_square(
    image: np.ndarray, resolution: int, target: int, rng: np.random.Generator | None
) -> np.ndarray:
    """A thin image that is to be enlarged, cut along its longer side to little more than the part that
    a crop would take: enlarged whole, it could take any amount of memory."""
    shorter = min(image.shape[:2])
    axis = int(np.argmax(image.shape[:2]))
    length = min(image.shape[axis], shorter + 2 * -(-resolution * shorter // target) + 8)
    free = image.shape[axis] - length
    start = free // 2 if rng is None else int(rng.integers(free + 1))
    return image.take(range(start, start + length), axis=axis)


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
    """Writes uint8 [H, W, C] in the format the suffix names; nothing half-written is left.

    Args:
      image: of 1 or 3 channels, or with one more for opacity, which is laid over white where the format
        has none.
      path: of the file; `STDIO` is standard output, which gets a PNG.

    Raises:
      UserError: the format is not known or the file cannot be written.
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

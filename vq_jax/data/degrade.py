"""Degrades images (size, noise, blur, JPEG, light), as conditions of priors that restore them."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

# (image uint8 [H, W, C], generator or None for seed 0) -> degraded image uint8 [h, w, C]
Degrade = Callable[[np.ndarray, np.random.Generator | None], np.ndarray]


def _pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _array(image: Image.Image) -> np.ndarray:
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def resize(image: np.ndarray, height: int, width: int, *, enlarge: bool = False) -> np.ndarray:
    """Resizes uint8 [H, W, C] to [height, width, C].

    Args:
      image: the image.
      height, width: the new sides.
      enlarge: whether to use bicubic interpolation, instead of means over areas.
    """
    resampling = Image.Resampling.BICUBIC if enlarge else Image.Resampling.BOX
    return _array(_pillow(image).resize((width, height), resampling))


def none() -> None:
    """Returns None: no condition."""


def upscale(factor: int = 2, enlarge: bool = True) -> Degrade:
    """Returns a function that makes an image `factor` times smaller.

    Args:
      factor: 2 or 4.
      enlarge: whether to resize it to its original size by bicubic interpolation, so that the
        tokenizer encodes it at the scale that it was trained on. Otherwise the small image is
        encoded.
    """
    if factor not in (2, 4):
        raise ValueError(f"factor is {factor}: use 2 or 4")

    def degrade(image: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        height, width = image.shape[:2]
        if height % factor or width % factor:
            raise ValueError(f"{height}x{width} does not divide by {factor}")
        small = resize(image, height // factor, width // factor)
        return resize(small, height, width, enlarge=True) if enlarge else small

    return degrade


def restore(
    noise: float = 0.15,
    blur: float = 1.5,
    jpeg: int = 20,
    low_light: float = 0.6,
    share: float = 0.5,
) -> Degrade:
    """Returns a function that applies blur, low light, noise and JPEG, in a camera's order.

    Args:
      noise: largest standard deviation of the Gaussian noise, relative to the range of the pixels.
      blur: largest standard deviation of the Gaussian blur, in pixels.
      jpeg: lowest JPEG quality, 1 to 95.
      low_light: largest share of the light that is removed.
      share: probability of each of the four; at least one is applied.
    """
    if not 1 <= jpeg <= 95:
        raise ValueError(f"jpeg is {jpeg}: use 1 to 95")
    for name, value in (("noise", noise), ("low_light", low_light), ("share", share)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}: use 0 to 1")
    if blur < 0:
        raise ValueError(f"blur is {blur}: use 0 or more")

    def degrade(image: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        rng = np.random.default_rng(0) if rng is None else rng
        applied = rng.random(4) < share
        applied[rng.integers(4)] = True
        amount = rng.uniform(0.25, 1.0, 4)
        if applied[0]:
            blurred = _pillow(image).filter(ImageFilter.GaussianBlur(float(blur * amount[0])))
            image = _array(blurred)
        light = image.astype(np.float32) / 255.0
        if applied[1]:
            light = light * (1.0 - low_light * amount[1])
        if applied[2]:
            light = light + rng.normal(0.0, noise * amount[2], light.shape)
        image = np.round(np.clip(light, 0.0, 1.0) * 255.0).astype(np.uint8)
        if applied[3]:
            file = io.BytesIO()
            quality = round(95 - (95 - jpeg) * amount[3])
            _pillow(image).save(file, "JPEG", quality=quality)
            image = _array(Image.open(io.BytesIO(file.getvalue())))
        return image

    return degrade


# name -> function that takes the fields of config.condition, and returns a Degrade or None
CONDITIONS: dict[str, Callable[..., Degrade | None]] = {
    "none": none,
    "upscale": upscale,
    "restore": restore,
}

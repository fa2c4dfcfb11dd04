"""A place to draw a mask on an image, and what was drawn."""

from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from vq_jax.errors import UserError
from vq_jax.page import parts


def editor(label: str, sources: Any) -> gr.ImageEditor:
    """A place to draw a mask on an image from these sources; a damaged image is described."""
    place: Any = gr.ImageEditor(
        label=label,
        type="numpy",
        image_mode="RGBA",
        layers=False,
        format="png",
        sources=sources,
        transforms=[],
        canvas_size=(512, 512),
        brush=gr.Brush(default_size=24, colors=["#ff00ff"], color_mode="fixed"),
    )
    read = place.preprocess

    def preprocess(payload: Any) -> Any:
        try:
            return read(payload)
        except Exception as e:
            raise gr.Error("this image cannot be read", print_exception=False) from e

    place.preprocess = preprocess
    return place


def drawn_mask(drawn: Any, channels: int, side: int, missing: str) -> tuple[np.ndarray, np.ndarray]:
    """Separates what the editor returns into an image and a mask.

    Args:
      drawn: "background" and "layers", uint8 [H, W, 4] each; painted pixels of the layers are opaque.
      channels: of the image.
      side: both are scaled down to sides of at most this number of pixels.
      missing: what to say that there is none of, and what to do.

    Returns:
      uint8 [H, W, channels], and bool [H, W].

    Raises:
      UserError: there is no image, it has too many pixels, or a layer has another size.
    """
    background = parts.needed(drawn and drawn.get("background"), missing)
    background = np.asarray(background)
    if not background[..., 3].any():
        raise UserError(f"there is no {missing}")
    if background.shape[0] * background.shape[1] > parts.PIXELS:
        raise UserError(f"the image has more than {parts.PIXELS / 1e6:.0f} megapixels")
    canvas = Image.new("RGBA", background.shape[1::-1], "white")
    canvas.alpha_composite(Image.fromarray(background))
    plain = np.asarray(canvas.convert("L" if channels == 1 else "RGB"))
    mask = np.zeros(background.shape[:2], np.uint8)
    for layer in drawn.get("layers") or []:
        if layer.shape[:2] != mask.shape:
            raise UserError("the drawing has another size than the image: remove it and draw again")
        mask[layer[..., 3] > 127] = 255
    image = parts.shrunk(plain.reshape(*mask.shape, channels), side)
    return image, parts.shrunk(mask, side, Image.Resampling.BOX) > 63


def needed_mask(mask: np.ndarray) -> np.ndarray:
    """Returns a mask.

    Raises:
      UserError: nothing is drawn.
    """
    if not mask.any():
        raise UserError("nothing is drawn: paint over what to replace")
    return mask

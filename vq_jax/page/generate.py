"""The tabs of images that need a prior: Generate and Edit."""

from collections.abc import Sequence
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from vq_jax import editing
from vq_jax.errors import UserError
from vq_jax.page import parts
from vq_jax.page.models import Described, chosen, prior_of

_NO_CLASS = "any"
# edit -> the condition of the prior that it needs
_EDITS = {
    "inpaint": "none",
    "outpaint": "none",
    "variations": "none",
    "upscale": "upscale",
    "restore": "restore",
}


def _classes(model: Described) -> list[str]:
    return [_NO_CLASS, *model.config.codes.classes]


def _label(name: str | None) -> str | None:
    return None if name in (None, _NO_CLASS) else name


def generate_tab(models: Sequence[Described]) -> None:
    """New images, by class."""
    gr.Markdown("New images: a prior samples codes, and the tokenizer decodes them.")
    with gr.Row():
        with gr.Column(scale=1):
            name = parts.menu(models)
            label = gr.Dropdown(_classes(models[0]), value=_NO_CLASS, label="Class")
            count = gr.Slider(1, 32, 16, step=1, label="Number of images")
            start = float(models[0].config.sampling.temperature)
            temperature = gr.Slider(0, 1.5, start, step=0.05, label="Temperature")
            guidance = gr.Slider(1, 8, 2, step=0.5, label="Guidance by the class")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            run = gr.Button("Generate", variant="primary")
        gallery = gr.Gallery(label="Samples", columns=8, format="png", height="auto", scale=3)

    def classes(name: str) -> Any:
        return gr.Dropdown(_classes(chosen(models, name)), value=_NO_CLASS)

    @parts.guarded
    def generate(name, label, count, temperature, guidance, seed, progress: Any = parts.PROGRESS):
        progress(0.1, "opening the model")
        prior = prior_of(chosen(models, name).folder)
        how: dict[str, Any] = {"guidance": float(guidance)} if _label(label) is not None else {}
        made = []
        for first in range(0, int(count), 8):
            progress(first / count, "sampling")
            rows = min(8, int(count) - first)
            samples = prior.sample(
                rows, label=_label(label), temperature=float(temperature), seed=int(seed),
                first=first, **how,
            )  # fmt: skip
            made += [parts.enlarged(parts.shown(x), 128) for x in prior.modality.to_raw(samples)]
        return made

    name.change(classes, name, label)
    run.click(generate, [name, label, count, temperature, guidance, seed], gallery)


def edits_of(models: Sequence[Described]) -> dict[str, list[Described]]:
    """Returns the edits of images that these models can do, and the models for each."""
    found = {
        edit: [
            m for m in models if (m.kind, m.modality, m.condition) == ("prior", "image", condition)
        ]
        for edit, condition in _EDITS.items()
    }
    return {edit: names for edit, names in found.items() if names}


def edit_tab(models: Sequence[Described]) -> None:
    """A drawn mask is filled; an image is extended, varied, enlarged or restored."""
    edits = edits_of(models)
    own = int(models[0].config.data.resolution)
    gr.Markdown(
        "Draw over what to replace, and inpaint it. `upscale` and `restore` take the whole image. Images are scaled to "
        "the size chosen before the edit; what is not edited stays as it is."
    )
    with gr.Row():
        with gr.Column():
            editor = gr.ImageEditor(
                label="Image", type="numpy", image_mode="RGBA", layers=False, format="png",
                sources=["upload", "clipboard"], transforms=[], canvas_size=(512, 512),
                brush=gr.Brush(default_size=24, colors=["#ff00ff"], color_mode="fixed"),
            )  # fmt: skip
            edit = gr.Radio(list(edits), value=next(iter(edits)), label="Edit")
            with gr.Row():
                side = gr.Slider(8, 256, own, step=8, label="Longer side in pixels")
                margin = gr.Slider(8, 64, 16, step=8, label="Pixels to add, for outpaint")
            with gr.Row():
                share = gr.Slider(0.1, 1, 0.5, step=0.1, label="Share to redraw, for variations")
                seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            run = gr.Button("Edit", variant="primary")
        gallery = gr.Gallery(
            label="Results", columns=2, format="png", height="auto", elem_id="results"
        )
    if samples := parts.example_images()["large emoji"]:
        gr.Examples([[p] for p in samples], [editor], label="Examples")

    @parts.guarded
    def apply(drawn, edit, side, margin, share, seed, progress: Any = parts.PROGRESS):
        progress(0.1, "opening the model")
        prior = prior_of(edits[edit][0].folder)
        image, mask = drawn_mask(drawn, prior.tokenizer.config.data.channels, int(side))
        progress(0.3, edit)
        how = {"seed": int(seed)}
        if edit == "inpaint":
            if not mask.any():
                raise UserError("nothing is drawn: paint over what to replace")
            made = [editing.inpaint(prior, image, mask, **how)]
        elif edit == "outpaint":
            made = [editing.outpaint(prior, image, int(margin), **how)]
        elif edit == "variations":
            made = list(editing.variations(prior, image, float(share), 4, **how))
        else:
            made = [getattr(editing, edit)(prior, image, **how)]
        results = [(parts.enlarged(parts.shown(x)), f"{edit}, seed {seed}") for x in made]
        return [(parts.enlarged(parts.shown(image)), "original"), *results]

    run.click(apply, [editor, edit, side, margin, share, seed], gallery)


def drawn_mask(drawn: Any, channels: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Separates what the editor returns into an image and a mask.

    Args:
      drawn: "background" and "layers", uint8 [H, W, 4] each; painted pixels of the layers are opaque.
      channels: of the image.
      side: both are scaled down to sides of at most this number of pixels.

    Returns:
      uint8 [H, W, channels], and bool [H, W].

    Raises:
      UserError: there is no image.
    """
    background = drawn.get("background") if drawn else None
    if background is None or not np.asarray(background)[..., 3].any():
        raise UserError("there is no image yet: upload one, or choose an example below")
    background = np.asarray(background)
    opacity = background[..., 3:].astype(np.float32) / 255
    plain = np.round(background[..., :3] * opacity + 255 * (1 - opacity)).astype(np.uint8)
    mask = np.zeros(plain.shape[:2], np.uint8)
    for layer in drawn.get("layers") or []:
        if layer is not None and layer.shape[:2] == mask.shape:
            mask = np.maximum(mask, np.where(layer[..., 3] > 127, 255, 0).astype(np.uint8))
    if channels == 1:
        plain = np.asarray(Image.fromarray(plain).convert("L"))[..., None]
    image = parts.shrunk(plain, side)
    return image, parts.shrunk(mask, side, Image.Resampling.BOX) > 63

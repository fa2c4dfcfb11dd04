"""The tabs of images that need a prior: Generate and Edit."""

from collections.abc import Sequence
from typing import Any

import gradio as gr
import numpy as np

from vq_jax import editing
from vq_jax.page import drawing, parts
from vq_jax.page.models import Described, chosen, prior_of
from vq_jax.page.parts import ONE, whole

_NO_CLASS = "any"
_AT_ONCE = 8  # samples of one call, always, so that few programs are compiled
# edit -> the condition of the prior that it needs
_EDITS = {
    "inpaint": "none",
    "outpaint": "none",
    "variations": "none",
    "upscale": "upscale",
    "restore": "restore",
}


def _class_menu(model: Described) -> gr.Dropdown:
    """A menu of a prior's classes; hidden if it has none. A prior that needs a class has no "any"."""
    names = list(model.config.codes.classes)
    if model.config.loss.label_dropout:
        names.insert(0, _NO_CLASS)
    return gr.Dropdown(
        names, value=names[0] if names else None, label="Class", visible=len(names) > 1
    )


def _guidance_of(model: Described) -> gr.Slider:
    guided = bool(model.config.codes.classes) and bool(model.config.loss.label_dropout)
    return gr.Slider(1, 8, 2, step=1, label="Guidance by the class", visible=guided)


def _temperature_of(model: Described) -> gr.Slider:
    own = round(float(model.config.sampling.temperature), 1)
    return gr.Slider(0, 1.5, own, step=0.1, label="Temperature")


def _settings(model: Described, label: str | None, guidance: float | None = None) -> dict[str, Any]:
    """What a prior takes of a class and a guidance."""
    if label is None or label == _NO_CLASS:
        return {}
    guided = guidance is not None and model.config.loss.label_dropout
    return {"label": label} | ({"guidance": float(guidance or 1)} if guided else {})


def generate_tab(models: Sequence[Described]) -> None:
    """New images, by class."""
    gr.Markdown("New images: a prior samples codes, and the tokenizer decodes them.")
    with gr.Row():
        with gr.Column(scale=1):
            name = parts.menu(models)
            label = _class_menu(models[0])
            count = gr.Slider(1, 32, 16, step=1, label="Number of images")
            temperature = _temperature_of(models[0])
            guidance = _guidance_of(models[0])
            seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            run = gr.Button("Generate", variant="primary")
        gallery = gr.Gallery(label="Samples", columns=8, format="png", height="auto", scale=3)

    def of_model(name: str) -> tuple:
        model = chosen(models, name)
        return _class_menu(model), _temperature_of(model), _guidance_of(model)

    @parts.guarded
    def generate(name, label, count, temperature, guidance, seed, progress: Any = parts.PROGRESS):
        progress(0.1, "opening the model")
        model, count, seed = chosen(models, name), whole(count, "the number"), whole(seed, "seed")
        prior, how = prior_of(model.folder), _settings(model, label, guidance)
        made: list[np.ndarray] = []
        for first in range(0, count, _AT_ONCE):
            progress(first / count, "sampling")
            samples = prior.sample(
                _AT_ONCE, temperature=round(temperature, 1), seed=seed, first=first, **how
            )
            made += [parts.enlarged(parts.shown(x), 128) for x in prior.modality.to_raw(samples)]
        return made[:count]

    name.change(of_model, name, [label, temperature, guidance])
    run.click(generate, [name, label, count, temperature, guidance, seed], gallery, **ONE)


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
    first = next(iter(edits))
    own = min(256, int(edits[first][0].config.data.resolution))
    gr.Markdown(
        "Draw over what to replace, and inpaint it. The other edits take the whole image. Larger images are scaled down "
        "before the edit; what is not edited stays as it is then."
    )
    with gr.Row():
        with gr.Column():
            editor = drawing.editor("Image", ["upload", "clipboard"])
            edit = gr.Radio(list(edits), value=first, label="Edit")
            with gr.Row():
                name = parts.menu(edits[first])
                label = _class_menu(edits[first][0])
            with gr.Row():
                side = gr.Slider(8, 256, own, step=8, label="Longest side in pixels")
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

    def of_edit(edit: str) -> tuple:
        return parts.menu(edits[edit]), _class_menu(edits[edit][0])

    @parts.guarded
    def apply(
        drawn, edit, name, label, side, margin, share, seed, progress: Any = parts.PROGRESS
    ) -> list:
        progress(0.1, "opening the model")
        model, seed = chosen(edits[edit], name), whole(seed, "seed")
        prior = prior_of(model.folder)
        channels = prior.tokenizer.config.data.channels
        image, mask = drawing.drawn_mask(drawn, channels, int(side), parts.NO_IMAGE)
        progress(0.3, edit)
        how = _settings(model, label) | {"seed": seed}
        made = _edited(prior, edit, image, mask, int(margin), round(share, 1), how)
        results = [(parts.enlarged(parts.shown(x)), f"{edit}, seed {seed}") for x in made]
        return [(parts.enlarged(parts.shown(image)), "original"), *results]

    edit.change(of_edit, edit, [name, label])
    inputs = [editor, edit, name, label, side, margin, share, seed]
    run.click(apply, inputs, gallery, **ONE)


def _edited(
    prior: Any,
    edit: str,
    image: np.ndarray,
    mask: np.ndarray,
    margin: int,
    share: float,
    how: dict[str, Any],
) -> list[np.ndarray]:
    if edit == "inpaint":
        return [editing.inpaint(prior, image, drawing.needed_mask(mask), **how)]
    if edit == "outpaint":
        return [editing.outpaint(prior, image, margin, **how)]
    if edit == "variations":
        return list(editing.variations(prior, image, share, 4, **how))
    return [getattr(editing, edit)(prior, image, **how)]

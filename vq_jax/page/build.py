"""The page as a whole: a tab for each thing that its models can do."""

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from vq_jax.errors import UserError
from vq_jax.page import parts
from vq_jax.page.generate import edit_tab, edits_of, generate_tab
from vq_jax.page.images import compress_tab, tokens_tab
from vq_jax.page.models import Described, among
from vq_jax.page.text import text_tab
from vq_jax.page.video import video_tab


def _edits(models: Sequence[Described]) -> list[Described]:
    return list({m.name: m for found in edits_of(models).values() for m in found}.values())


def _codecs(models: Sequence[Described]) -> list[Described]:
    """Tokenizers of images, those made for compression first."""
    found = among(models, "tokenizer", "image")
    return sorted(found, key=lambda m: not m.integers)


# title -> the models of a tab, and what makes its content from them
TABS: dict[str, tuple[Callable[[Sequence[Described]], list[Described]], Callable[..., None]]] = {
    "Compress": (_codecs, compress_tab),
    "Tokens": (lambda models: among(models, "tokenizer", "image"), tokens_tab),
    "Generate": (lambda models: among(models, "prior", "image"), generate_tab),
    "Edit": (_edits, edit_tab),
    "Text": (lambda models: [m for m in models if m.modality == "text"], text_tab),
    "Video": (lambda models: [m for m in models if m.modality == "video"], video_tab),
}

# Fonts of the system, so that the page asks no other server for them.
THEME: Any = gr.themes.Soft(
    font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
)


def build(models: Sequence[Described]) -> gr.Blocks:
    """Makes the page.

    Args:
      models: what it offers; see `models.served`.

    Raises:
      UserError: there is no tab for any of them.
    """
    tabs = {title: (select(models), make) for title, (select, make) in TABS.items()}
    if not any(found for found, _ in tabs.values()):
        raise UserError("the page is for models of images, texts and videos")
    with gr.Blocks(
        title="vq_jax", analytics_enabled=False, delete_cache=(parts.HOUR, parts.HOUR)
    ) as page:
        names = ", ".join(f"`{m.name}`" for m in models)
        gr.Markdown(f"# vq_jax\nImages, texts and videos as discrete codes. Models: {names}")
        for title, (found, make) in tabs.items():
            if found:
                with gr.Tab(title):
                    make(found)
    return page.queue(default_concurrency_limit=1, max_size=32)

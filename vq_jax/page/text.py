"""The tab of texts: continue a prompt, fill gaps, and compress without loss."""

import gzip
import lzma
from collections.abc import Sequence
from typing import Any

import gradio as gr
import numpy as np

from vq_jax import text_editing
from vq_jax.errors import UserError
from vq_jax.page import parts
from vq_jax.page.models import Described, among, chosen, codec_of, prior_of
from vq_jax.page.parts import ONE, whole

_MOST_BYTES = 20_000  # that are compressed at once: a prior takes seconds a kilobyte
_PROMPT = "And Jesus said unto them, "
_CANDIDATES = 32  # of which each filled gap is the likeliest
_GAP = "_"  # stands for each byte to draw
_GAPS = "And God said, Let there be __________________, and it was so."
_PSALM = (
    "The LORD is my shepherd; I shall not want. He maketh me to lie down in green pastures: he leadeth me "
    "beside the still waters. He restoreth my soul."
)


def text_tab(models: Sequence[Described]) -> None:
    """Texts that continue a prompt, texts with gaps, and a text as a .vqz file."""
    if priors := among(models, "prior", "text"):
        _continue(priors)
    if filling := [m for m in priors if m.fills_gaps]:
        _fill(filling)
    _compress([m for m in models if m.modality == "text"])


def _continue(priors: Sequence[Described]) -> None:
    gr.Markdown("### Continue a text")
    with gr.Row():
        with gr.Column(scale=1):
            name = parts.menu(priors)
            prompt = gr.Textbox(_PROMPT, label="Prompt", lines=3, max_length=400)
            count = gr.Slider(1, 8, 3, step=1, label="Number of texts")
            temperature = gr.Slider(0, 1.5, 0.8, step=0.1, label="Temperature")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            run = gr.Button("Write", variant="primary")
        written = gr.Textbox(label="Texts", lines=16, scale=2, interactive=False)

    @parts.guarded
    def write(name, prompt, count, temperature, seed, progress: Any = parts.PROGRESS) -> str:
        progress(0.1, "opening the model")
        prior = prior_of(chosen(priors, name).folder)
        progress(0.3, "sampling")
        samples = prior.sample(
            whole(count, "the number"),
            prompt=prompt or None,
            temperature=round(temperature, 1),
            seed=whole(seed, "seed"),
        )
        texts = [prior.modality.shown(x) for x in prior.modality.to_raw(samples)]
        return "\n\n---\n\n".join(str(text) for text in texts)

    run.click(write, [name, prompt, count, temperature, seed], written, **ONE)


def _fill(priors: Sequence[Described]) -> None:
    gr.Markdown("### Fill the gaps of a text")
    with gr.Row():
        with gr.Column(scale=1):
            name = parts.menu(priors)
            text = gr.Textbox(
                _GAPS, label=f"Text, with {_GAP} for each byte to draw", lines=3, max_length=400
            )
            temperature = gr.Slider(0, 1.5, 0.7, step=0.1, label="Temperature")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            run = gr.Button("Fill", variant="primary")
        filled = gr.Textbox(label="Filled in four ways", lines=10, scale=2, interactive=False)

    @parts.guarded
    def fill(name, text, temperature, seed, progress: Any = parts.PROGRESS) -> str:
        plain = np.frombuffer(parts.needed(text, "text: write one").encode(), np.uint8)
        gap = text_editing.read_gap(plain, _GAP)
        progress(0.1, "opening the model")
        prior, first = prior_of(chosen(priors, name).folder), whole(seed, "seed")
        texts = []
        for i in range(4):
            progress(0.3 + 0.2 * i, "sampling")
            drawn = text_editing.fill_gap(
                prior,
                plain,
                gap,
                candidates=_CANDIDATES,
                seed=first + i,
                temperature=round(temperature, 1),
            )
            texts.append(str(prior.modality.shown(drawn)))
        return "\n\n---\n\n".join(texts)

    run.click(fill, [name, text, temperature, seed], filled, **ONE)


def _compress(models: Sequence[Described]) -> None:
    gr.Markdown("### Compress a text without loss")
    with gr.Row():
        with gr.Column():
            name = parts.menu(models)
            text = gr.Textbox(_PSALM, label="Text", lines=6, max_length=_MOST_BYTES)
            run = gr.Button("Compress", variant="primary")
        with gr.Column():
            said = gr.Markdown()
            save = gr.DownloadButton("Download the .vqz file", interactive=False)

    @parts.guarded
    def compress(name: str, text: str, progress: Any = parts.PROGRESS) -> tuple:
        plain = parts.needed(text, "text: write one").encode()
        if len(plain) > _MOST_BYTES:
            raise UserError(
                f"the text has {len(plain):,} bytes: this page takes up to {_MOST_BYTES:,}"
            )
        progress(0.1, "opening the model")
        opened = codec_of(chosen(models, name).folder)
        progress(0.3, "compressing")
        data = opened.compress(plain)
        progress(0.7, "decompressing")
        back = np.asarray(opened.decompress(data)).tobytes()
        if back != plain:
            raise UserError("the text did not come back unchanged on this machine")
        sizes = {
            "vq_jax": len(data),
            "xz": len(lzma.compress(plain, preset=9)),
            "gzip": len(gzip.compress(plain, 9)),
        }
        lines = ["| | bytes | bits a byte |", "|---|---|---|"]
        lines += [f"| {who} | {n:,} | {8 * n / len(plain):.2f} |" for who, n in sizes.items()]
        lines.append(f"\n{len(plain):,} bytes, which came back unchanged.")
        return "\n".join(lines), parts.download(data)

    run.click(compress, [name, text], [said, save], **ONE)

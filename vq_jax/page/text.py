"""The tab of texts: continue a prompt, and compress without loss."""

import gzip
import lzma
from collections.abc import Sequence
from typing import Any

import gradio as gr
import numpy as np

from vq_jax.errors import UserError
from vq_jax.page import parts
from vq_jax.page.models import Described, among, chosen, codec_of, prior_of
from vq_jax.page.parts import ONE, whole

_MOST_BYTES = 20_000  # that are compressed at once: a prior takes seconds a kilobyte
_PROMPT = "And Jesus said unto them, "
_PSALM = (
    "The LORD is my shepherd; I shall not want. He maketh me to lie down in green pastures: he leadeth me "
    "beside the still waters. He restoreth my soul."
)


def text_tab(models: Sequence[Described]) -> None:
    """Texts that continue a prompt, and a text as a .vqz file."""
    if priors := among(models, "prior", "text"):
        _continue(priors)
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

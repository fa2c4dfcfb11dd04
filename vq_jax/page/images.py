"""The tabs of images that need no prior: Tokens and Compress."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from vq_jax.codec import Codec, peers
from vq_jax.codec.bitstream import SUFFIX
from vq_jax.errors import UserError
from vq_jax.page import parts
from vq_jax.page.models import Described, chosen, codec_of, tokens

_TOKENS_SIDE = 256  # larger images are scaled down for the code map


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the PSNR of two images uint8 [H, W, C] in dB."""
    error = np.square(a.astype(np.float64) - b).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-4)))


def code_colours(codes: np.ndarray) -> np.ndarray:
    """Returns a colour for each code int [H, W], uint8 [H, W, 3]; neighbouring numbers differ."""
    hue = (codes * 0.61803398875) % 1.0
    value = 0.55 + 0.45 * (codes % 7) / 6
    hsv = np.stack([hue, np.full(codes.shape, 0.65), value], axis=-1)
    image = Image.fromarray((255 * hsv).astype(np.uint8), "HSV")
    return np.asarray(image.convert("RGB"))


def tokens_tab(models: Sequence[Described]) -> None:
    """An image, its codes as a map, and what they decode to; a click on the map changes a code."""
    gr.Markdown(
        "An image becomes a grid of codes, and the codes an image again. Click a code on the map to change it."
    )
    with gr.Row():
        with gr.Column():
            picture = parts.upload()
            name = parts.menu(models)
            run = gr.Button("Encode", variant="primary")
        with gr.Column():
            code_map = gr.Image(
                label="Codes", interactive=False, format="png", buttons=[], height=400
            )
            with gr.Row():
                place = gr.Textbox(label="Position", interactive=False)
                level = gr.Number(0, label="Level", precision=0, minimum=0)
                code = gr.Number(0, label="Code", precision=0, minimum=0)
            change = gr.Button("Change this code")
        with gr.Column():
            decoded = gr.Image(label="Reconstruction", interactive=False, format="png", height=400)
            said = gr.Markdown()
    state = gr.State()
    samples = parts.example_images()
    if examples := samples["emoji"] + samples["photos"]:
        gr.Examples([[p] for p in examples], [picture], label="Examples")

    @parts.guarded
    def encode(path: str | None, name: str, progress: Any = parts.PROGRESS) -> tuple:
        progress(0.1, "opening the model")
        opened = codec_of(chosen(models, name).folder)
        image = parts.read_upload(path, opened.tokenizer.config.data.channels, _TOKENS_SIDE)
        progress(0.5, "encoding")
        now = {"name": name, "codes": tokens(opened, image), "shape": image.shape[:2]}
        result = _decoded(opened, now)
        text = _described(opened, now, psnr(image, result))
        return now, _map_of(opened, now, 0), parts.enlarged(parts.shown(result)), text, "", 0

    @parts.guarded
    def select(now: Any, level: float, event: gr.SelectData) -> tuple:
        parts.needed(now, "grid of codes")
        return _selected(codec_of(chosen(models, now["name"]).folder), now, int(level), event.index)

    @parts.guarded
    def update(now: Any, level: float, code: float) -> tuple:
        parts.needed(now, "grid of codes")
        opened = codec_of(chosen(models, now["name"]).folder)
        now = _changed(opened, now, int(level), int(code))
        picture = parts.enlarged(parts.shown(_decoded(opened, now)))
        return now, _map_of(opened, now, int(level)), picture

    run.click(encode, [picture, name], [state, code_map, decoded, said, place, level])
    code_map.select(select, [state, level], [state, place, code])
    change.click(update, [state, level, code], [state, code_map, decoded])


# What the tab knows of an image: {"name": of the model, "codes": int32 [*grid, *code_shape], "shape": (H, W), and
# "place": (row, column) once a code is chosen}.
_Now = dict[str, Any]


def _described(opened: Codec, now: _Now, ratio: float) -> str:
    rate = math.log2(opened.tokenizer.codes.num_codes)
    codes, (height, width) = now["codes"], now["shape"]
    bits = codes.size * rate
    return (
        f"{width}x{height} pixels, {codes.size:,} codes of {rate:.1f} bits: {math.ceil(bits / 8):,} bytes before "
        f"entropy coding, {bits / (height * width):.3f} bits a pixel. PSNR {ratio:.2f} dB."
    )


def _selected(opened: Codec, now: _Now, level: int, place: Any) -> tuple:
    """Chooses the code below a pixel (x, y) of the map."""
    codes = _of_level(opened, now, level)
    scale = _map_scale(codes)
    column, row = (
        min(int(v) // scale, n - 1) for v, n in zip(place, codes.shape[::-1], strict=True)
    )
    return now | {"place": (row, column)}, f"row {row}, column {column}", int(codes[row, column])


def _changed(opened: Codec, now: _Now, level: int, code: int) -> _Now:
    if "place" not in now:
        raise UserError("no code is chosen: click one on the map")
    if not 0 <= code < (count := opened.tokenizer.codes.num_codes):
        raise UserError(f"code is {code}: use 0 to {count - 1}")
    now = now | {"codes": now["codes"].copy()}
    _of_level(opened, now, level)[now["place"]] = code
    return now


def _of_level(opened: Codec, now: _Now, level: int) -> np.ndarray:
    """The codes [H, W] of one level, a view of those of the image."""
    spec, codes = opened.tokenizer.codes, now["codes"]
    if not 0 <= level < spec.books:
        raise UserError(f"level is {level}: this tokenizer has levels 0 to {spec.books - 1}")
    grid = codes[..., level] if spec.code_shape else codes
    return grid if grid.ndim == 2 else grid.reshape(len(grid), -1)


def _map_scale(codes: np.ndarray) -> int:
    return max(1, 512 // max(codes.shape))


def _map_of(opened: Codec, now: _Now, level: int) -> np.ndarray:
    codes = _of_level(opened, now, level)
    scale = _map_scale(codes)
    return code_colours(codes).repeat(scale, axis=0).repeat(scale, axis=1)


def _decoded(opened: Codec, now: _Now) -> np.ndarray:
    return next(iter(opened.tiler.decode([now["codes"]], [now["shape"]])))


def compress_tab(models: Sequence[Described]) -> None:
    """An image as a .vqz file, beside JPEG, WebP and AVIF of as many bytes."""
    gr.Markdown(
        "A photograph as a `.vqz` file, beside JPEG, WebP and AVIF with no more bytes. `photo-codec` has 100 qualities; "
        "the tokenizers of other models have one."
    )
    with gr.Row():
        with gr.Column(scale=1):
            picture = parts.upload()
            name = parts.menu(models)
            quality = gr.Slider(1, 100, 25, step=1, label="Quality")
            run = gr.Button("Compress", variant="primary")
            save = gr.DownloadButton("Download the .vqz file", interactive=False)
        with gr.Column(scale=2):
            slider = gr.ImageSlider(
                label="Original | vq_jax", type="numpy", interactive=False, format="png"
            )
            gallery = gr.Gallery(
                label="At equal bytes", columns=3, object_fit="contain", format="png"
            )
            said = gr.Markdown()
    with gr.Accordion("Open a .vqz file", open=False), gr.Row():
        file = gr.File(label=".vqz file", file_types=[SUFFIX], type="filepath")
        opened_image = gr.Image(
            label="Decompressed", interactive=False, format="png", elem_id="decompressed"
        )
    if samples := parts.example_images()["photos"]:
        gr.Examples([[p] for p in samples], [picture], label="Examples")

    @parts.guarded
    def compress(
        path: str | None, name: str, quality: float, progress: Any = parts.PROGRESS
    ) -> tuple:
        progress(0.1, "opening the model")
        opened = codec_of(chosen(models, name).folder)
        image = parts.read_upload(path, opened.tokenizer.config.data.channels)
        progress(0.2, "compressing")
        data = opened.compress(image, quality=int(quality) if opened.has_context else None)
        target = parts.temporary(SUFFIX)
        target.write_bytes(data)
        progress(0.6, "decompressing")
        made = {"vq_jax": (len(data), opened.decompress(data))}
        for peer in peers.available():
            progress(0.7, f"{peer} at equal bytes")
            _, other = peers.at_most(peer, image, len(data))
            made[peer] = (len(other), peers.decode(other, image.shape[-1]))
        button = gr.DownloadButton(value=str(target), interactive=True)
        return *_compared(image, made), button

    @parts.guarded
    def open_file(path: str | None, name: str) -> np.ndarray | None:
        if path is None:
            return None
        opened = codec_of(chosen(models, name).folder)
        return parts.shown(opened.decompress(Path(path).read_bytes()))

    run.click(compress, [picture, name, quality], [slider, gallery, said, save])
    file.change(open_file, [file, name], opened_image)


def _compared(image: np.ndarray, made: dict[str, tuple[int, np.ndarray]]) -> tuple:
    """An image and its compressed copies, by name with their bytes: a pair, a gallery and a table."""
    original = parts.shown(image)
    pictures = [(original, f"original, {image.size:,} bytes uncompressed")]
    lines = ["| | bytes | bits a pixel | PSNR, dB |", "|---|---|---|---|"]
    for name, (size, result) in made.items():
        pictures.append((parts.shown(result), f"{name}, {size:,} bytes"))
        rate = 8 * size / math.prod(image.shape[:2])
        mark = " (has no smaller file)" if size > made["vq_jax"][0] else ""
        lines.append(f"| {name}{mark} | {size:,} | {rate:.3f} | {psnr(image, result):.2f} |")
    return (original, parts.shown(made["vq_jax"][1])), pictures, "\n".join(lines)

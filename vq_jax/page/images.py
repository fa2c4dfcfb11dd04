"""The tabs of images that need no prior: Tokens and Compress."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from vq_jax.codec import Codec, bitstream, peers
from vq_jax.codec.bitstream import SUFFIX
from vq_jax.data.images import psnr
from vq_jax.errors import UserError
from vq_jax.page import parts
from vq_jax.page.models import Described, chosen, codec_of, tokens
from vq_jax.page.parts import ONE, whole

_TOKENS_SIDE = 256  # larger images are scaled down for the code map


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
        model = chosen(models, name)
        opened = codec_of(model.folder)
        image = parts.read_upload(path, opened.tokenizer.config.data.channels, _TOKENS_SIDE)
        progress(0.5, "encoding")
        now = {"name": name, "codes": tokens(opened, image), "image": image}
        return now, _map_of(opened, now, 0), *_decoded(opened, now, model), "", 0

    @parts.guarded
    def show_level(now: Any, level: float) -> tuple:
        parts.needed(now, _NO_CODES)
        opened = codec_of(chosen(models, now["name"]).folder)
        return now | {"place": None}, _map_of(opened, now, whole(level, "level")), ""

    @parts.guarded
    def select(now: Any, level: float, event: gr.SelectData) -> tuple:
        parts.needed(now, _NO_CODES)
        opened = codec_of(chosen(models, now["name"]).folder)
        return _selected(opened, now, whole(level, "level"), event.index)

    @parts.guarded
    def update(now: Any, level: float, code: float) -> tuple:
        parts.needed(now, _NO_CODES)
        model = chosen(models, now["name"])
        opened = codec_of(model.folder)
        now = _changed(opened, now, whole(level, "level"), whole(code, "code"))
        return now, _map_of(opened, now, whole(level, "level")), *_decoded(opened, now, model)

    outputs = [state, code_map, decoded, said]
    run.click(encode, [picture, name], [*outputs, place, level], **ONE)
    level.input(show_level, [state, level], [state, code_map, place], **ONE)
    code_map.select(select, [state, level], [state, place, code], **ONE)
    change.click(update, [state, level, code], outputs, **ONE)


# What the tab knows of an image: {"name": of the model, "codes": int32 [*grid, *code_shape], "image": uint8
# [H, W, C], and "place": (row, column) of the chosen code, or None}.
_Now = dict[str, Any]
_NO_CODES = "grid of codes yet: encode an image"


def _decoded(opened: Codec, now: _Now, model: Described) -> tuple[np.ndarray, str]:
    """What the codes decode to, for the page, and a description."""
    codes, (height, width) = now["codes"], now["image"].shape[:2]
    result = next(iter(opened.tiler.decode([codes], [(height, width)])))
    text = f"{width}x{height} pixels, {codes.size:,} codes"
    if not model.integers:  # Their bits depend on the entropy model alone.
        rate = math.log2(opened.tokenizer.codes.num_codes)
        bits = codes.size * rate
        text += (
            f" of {rate:.1f} bits: {math.ceil(bits / 8):,} bytes before entropy coding, "
            f"{bits / (height * width):.3f} bits a pixel"
        )
    text += f". PSNR {psnr(now['image'], result):.2f} dB."
    return parts.enlarged(parts.shown(result)), text


def _selected(opened: Codec, now: _Now, level: int, place: Any) -> tuple:
    """Chooses the code below a pixel (x, y) of the map."""
    codes = _of_level(opened, now, level)
    scale = _map_scale(codes)
    column, row = (
        min(int(v) // scale, n - 1) for v, n in zip(place, codes.shape[::-1], strict=True)
    )
    return now | {"place": (row, column)}, f"row {row}, column {column}", int(codes[row, column])


def _changed(opened: Codec, now: _Now, level: int, code: int) -> _Now:
    if now.get("place") is None:
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


def compress_tab(models: Sequence[Described]) -> None:
    """An image as a .vqz file, beside JPEG, WebP and AVIF of as many bytes."""
    gr.Markdown(
        "An image as a `.vqz` file, beside JPEG, WebP and AVIF with no more bytes, or with their fewest."
    )
    with gr.Row():
        with gr.Column(scale=1):
            picture = parts.upload()
            name = parts.menu(models)
            quality = _quality_of(models[0])
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
    _open_files(models, name)
    if samples := parts.example_images()["photos"]:
        gr.Examples([[p] for p in samples], [picture], label="Examples")

    @parts.guarded
    def compress(
        path: str | None, name: str, quality: float, progress: Any = parts.PROGRESS
    ) -> tuple:
        progress(0.1, "opening the model")
        model = chosen(models, name)
        opened = codec_of(model.folder)
        image = parts.read_upload(path, opened.tokenizer.config.data.channels)
        progress(0.2, "compressing")
        given = int(quality) if model.integers or model.levels > 1 else None
        data = opened.compress(image, quality=given)
        progress(0.6, "decompressing")
        made = {"vq_jax": (len(data), opened.decompress(data))}
        for peer in peers.available():
            progress(0.7, f"{peer} at equal bytes")
            try:
                _, other = peers.at_most(peer, image, len(data))
            except UserError:
                continue  # The format does not have images of this size.
            made[peer] = (len(other), peers.decode(other, image.shape[-1]))
        return *_compared(image, made), parts.download(data)

    name.change(lambda name: _quality_of(chosen(models, name)), name, quality)
    run.click(compress, [picture, name, quality], [slider, gallery, said, save], **ONE)


def _open_files(models: Sequence[Described], name: gr.Dropdown) -> None:
    """A .vqz file as an image, by the model that a menu names."""
    with gr.Accordion("Open a .vqz file", open=False), gr.Row():
        file = gr.File(label=".vqz file", file_types=[SUFFIX], type="filepath")
        opened_image = gr.Image(
            label="Decompressed", interactive=False, format="png", elem_id="decompressed"
        )

    @parts.guarded
    def open_file(path: str | None, name: str) -> np.ndarray | None:
        if path is None:
            return None
        opened, data = codec_of(chosen(models, name).folder), Path(path).read_bytes()
        header, _ = bitstream.unpack(data)
        if math.prod(header.shape) > parts.PIXELS:
            raise UserError(
                f"this file has more than {parts.PIXELS / 1e6:.0f} megapixels: use the command line"
            )
        return parts.shown(opened.decompress(data))

    file.change(open_file, [file, name], opened_image, **ONE)


def _quality_of(model: Described) -> gr.Slider:
    """Qualities 1 to 100, or levels; hidden for a tokenizer with one rate."""
    most = 100 if model.integers else model.levels
    value = 25 if model.integers else most
    return gr.Slider(1, max(2, most), value, step=1, label="Quality", visible=most > 1)


def _compared(image: np.ndarray, made: dict[str, tuple[int, np.ndarray]]) -> tuple:
    """An image and its compressed copies, by name with their bytes: a pair, a gallery and a table."""
    original = parts.shown(image)
    pictures = [(original, f"original, {image.size:,} bytes uncompressed")]
    lines = ["| | bytes | bits a pixel | PSNR, dB |", "|---|---|---|---|"]
    for name, (size, result) in made.items():
        pictures.append((parts.shown(result), f"{name}, {size:,} bytes"))
        rate = 8 * size / math.prod(image.shape[:2])
        mark = ", its smallest file" if size > made["vq_jax"][0] else ""
        lines.append(f"| {name}{mark} | {size:,} | {rate:.3f} | {psnr(image, result):.2f} |")
    return (original, parts.shown(made["vq_jax"][1])), pictures, "\n".join(lines)

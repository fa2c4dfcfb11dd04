"""The tab of videos: new, continued and edited clips, and clips through a tokenizer."""

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from vq_jax import video_editing
from vq_jax.data.moving_emoji import VAL_CLIPS, MovingEmoji
from vq_jax.data.video import DEFAULT_RATE, Clip, as_clip, read_frames, write_clip
from vq_jax.errors import UserError
from vq_jax.page import drawing, parts
from vq_jax.page.models import Described, among, chosen, codec_of, prior_of
from vq_jax.page.parts import ONE, whole

_SECONDS = 10  # of an uploaded clip that are used
_FRAMES = 240


def video_tab(models: Sequence[Described]) -> None:
    """Clips: sampled, continued, edited, compressed."""
    if priors := among(models, "prior", "video"):
        _generate(priors)
        _edit(priors)
    if tokenizers := among(models, "tokenizer", "video"):
        _reconstruct(tokenizers)


def _write(frames: np.ndarray, rate: Any, target: Path) -> str:
    """Writes frames uint8 [T, H, W, C] as an .mp4 with even sides, which every browser plays."""
    odd = [side % 2 for side in frames.shape[1:3]]
    frames = np.pad(frames, ((0, 0), (0, odd[0]), (0, odd[1]), (0, 0)), mode="edge")
    large = np.stack([parts.enlarged(parts.shown(frame)) for frame in frames])
    write_clip(as_clip(large, rate), target)
    return str(target)


def _saved(frames: np.ndarray, rate: Any) -> str:
    return _write(frames, rate, parts.temporary(".mp4"))


@functools.cache
def _example_clips() -> list[str]:
    """Writes clips of one moving emoji to files; none where the emoji are missing."""
    from vq_jax.data import builders  # TensorFlow Datasets takes a while

    try:
        files = tuple(builders.emoji_splits()["test"])
        clips = MovingEmoji("test", files, frames=17, side=32, count=VAL_CLIPS, alone=True)
        places = [(i, parts.folder() / f"emoji_{i}.mp4") for i in (3, 8, 9, 12)]
        return [_write(clips[i]["x"], DEFAULT_RATE, place) for i, place in places]
    except UserError:
        return []  # the extra `demo` is not installed


def _read(path: str | None, channels: int, side: int, most: int = _FRAMES) -> Clip:
    """Reads the beginning of an uploaded clip, scaled down, at most `most` frames."""
    file = Path(parts.needed(path, "video yet: upload one"))
    with parts.without_folder(file):
        clip = read_frames(file, channels)
        count = min(clip.shape[0], most, max(1, int(_SECONDS * clip.rate)))
        frames = [parts.shrunk(frame, side) for frame in itertools.islice(clip.frames(), count)]
    return as_clip(np.stack(frames), clip.rate)


def _read_for(prior: Described, path: str | None, most: int = _FRAMES) -> Clip:
    """Reads an uploaded clip at the size that the prior knows."""
    _, height, width, channels = prior.config.codes.example
    return _read(path, channels, max(height, width), most)


def _edits_of(model: Described) -> list[str]:
    return ["inpaint"] + ["interpolate"] * model.fills_gaps


def _examples(video: gr.Video) -> None:
    """Clips that one click loads."""
    if clips := _example_clips():
        gr.Examples([[path] for path in clips], [video], label="Examples")


def _generate(priors: Sequence[Described]) -> None:
    gr.Markdown("### New clips, and clips continued")
    with gr.Row():
        with gr.Column():
            name = parts.menu(priors)
            video = gr.Video(label="Clip to continue; none for a new clip", sources=["upload"])
            frames = gr.Slider(4, 64, 16, step=4, label="Frames to append")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            run = gr.Button("Generate", variant="primary")
        made = gr.Video(label="Result", autoplay=True, loop=True, interactive=False)
    _examples(video)

    @parts.guarded
    def generate(name, path, frames, seed, progress: Any = parts.PROGRESS) -> str:
        progress(0.1, "opening the model")
        model = chosen(priors, name)
        prior = prior_of(model.folder)
        progress(0.3, "sampling")
        if path is None:
            samples = prior.modality.to_raw(prior.sample(1, seed=whole(seed, "seed")))
            return _saved(samples[0], DEFAULT_RATE)
        clip = _read_for(model, path)
        result = video_editing.predict(prior, clip.array(), int(frames), seed=whole(seed, "seed"))
        return _saved(result, clip.rate)

    run.click(generate, [name, video, frames, seed], made, **ONE)


def _edit(priors: Sequence[Described]) -> None:
    gr.Markdown(
        "### Edit a clip\n"
        "*Inpaint*: paint on the first frame what to replace; the mask holds for all frames. *Interpolate* keeps the "
        "first and the last frame, and draws new frames between them; the result is as long as the prior's clips."
    )
    with gr.Row():
        with gr.Column():
            name = parts.menu(priors)
            video = gr.Video(label="Clip to edit", sources=["upload"])
            editor = drawing.editor("First frame", [])
            edit = gr.Radio(_edits_of(priors[0]), value="inpaint", label="Edit")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            run = gr.Button("Edit", variant="primary")
        made = gr.Video(
            label="Edited clip", autoplay=True, loop=True, interactive=False, elem_id="edited"
        )
    _examples(video)

    @parts.guarded
    def show_first(name, path) -> Any:
        if path is None:
            return None
        frame = next(_read_for(chosen(priors, name), path, most=1).frames())
        return parts.enlarged(parts.shown(frame))

    def of_model(name: str) -> gr.Radio:
        return gr.Radio(_edits_of(chosen(priors, name)), value="inpaint", label="Edit")

    @parts.guarded
    def apply(name, path, drawn, edit, seed, progress: Any = parts.PROGRESS) -> str:
        progress(0.1, "opening the model")
        model, seed = chosen(priors, name), whole(seed, "seed")
        prior, clip = prior_of(model.folder), _read_for(model, path)
        frames = clip.array()
        progress(0.3, edit)
        if edit == "interpolate":
            return _saved(
                video_editing.interpolate(prior, frames[0], frames[-1], seed=seed), clip.rate
            )
        side, missing = max(clip.shape[1:3]), "first frame yet: upload a clip"
        _, mask = drawing.drawn_mask(drawn, clip.shape[-1], side, missing)
        mask = drawing.needed_mask(mask)
        return _saved(video_editing.inpaint(prior, frames, mask, seed=seed), clip.rate)

    for changed in (name, video):
        changed.change(show_first, [name, video], editor, **ONE)
    name.change(of_model, name, edit)
    run.click(apply, [name, video, editor, edit, seed], made, **ONE)


def _reconstruct(tokenizers: Sequence[Described]) -> None:
    gr.Markdown("### A clip through the tokenizer")
    own = max(16, min(256, int(tokenizers[0].config.data.resolution)))
    with gr.Row():
        with gr.Column():
            name = parts.menu(tokenizers)
            video = gr.Video(label="Clip", sources=["upload"])
            side = gr.Slider(16, 256, own, step=16, label="Longer side in pixels")
            run = gr.Button("Compress", variant="primary")
        with gr.Column():
            made = gr.Video(
                label="Original and decompressed", autoplay=True, loop=True, interactive=False
            )
            said = gr.Markdown()
            save = gr.DownloadButton("Download the .vqz file", interactive=False)
    _examples(video)

    @parts.guarded
    def reconstruct(name, path, side, progress: Any = parts.PROGRESS) -> tuple:
        progress(0.1, "opening the model")
        opened = codec_of(chosen(tokenizers, name).folder)
        clip = _read(path, opened.tokenizer.config.data.channels, int(side))
        progress(0.3, "compressing")
        data = opened.compress(clip)
        progress(0.6, "decompressing")
        frames, back = clip.array(), opened.decompress(data).array()
        units = int(np.prod(clip.shape[:3]))
        text = (
            f"{clip.shape[0]} frames of {clip.shape[2]}x{clip.shape[1]} pixels: {len(data):,} bytes, "
            f"{8 * len(data) / units:.3f} bits a pixel-frame, {frames.size / len(data):.0f} times smaller."
        )
        both = np.concatenate([frames, back], axis=2)
        return _saved(both, clip.rate), text, parts.download(data)

    run.click(reconstruct, [name, video, side], [made, said, save], **ONE)

"""Video: float32 [T, H, W, C] in [-1, 1] for models, uint8 [T, H, W, C] or a `Clip` in files."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vq_jax import metrics
from vq_jax.bounds import Bounds
from vq_jax.console import stderr
from vq_jax.data.clips import open_clips
from vq_jax.data.images import fit, rows_of, save_image, to_float, with_channels
from vq_jax.data.moving_emoji import open_moving_emoji
from vq_jax.data.sources import OpenSource
from vq_jax.data.video import (
    DEFAULT_RATE,
    SUFFIXES,
    Clip,
    as_clip,
    frames_in,
    read_clip,
    write_clip,
)
from vq_jax.errors import UserError
from vq_jax.interop.lpips import load_lpips
from vq_jax.modalities.base import Network, Rows
from vq_jax.modalities.image import lpips_networks
from vq_jax.modalities.pixels import Pixels
from vq_jax.modalities.video_networks import frame_networks, fvd_network
from vq_jax.models.perceptual import lpips


@dataclasses.dataclass
class VideoData:
    """Fields of `config.data` for video."""

    frames: Annotated[int, Bounds(1)] = 17  # of an example
    frame_rate: Annotated[float, Bounds(0)] = 0.0  # frames a second; 0 is that of each file
    stride: Annotated[int, Bounds(1)] = 1  # with frame_rate=0, every n-th frame of a file
    resolution: Annotated[int, Bounds(1)] = 64
    channels: int = 3  # or 1
    resize: int | None = None  # of the shorter side; None: to the resolution; 0: none
    crop: str = "center"  # or "random", in training
    flip: bool = True  # mirror half of the training clips


@dataclasses.dataclass
class FrameLoss:
    """Fields of `config.loss` for video."""

    perceptual_weight: float = 1.0  # of LPIPS of frames; 0 trains without
    perceptual_from: str = "autoencoder"  # first phase with LPIPS
    perceptual_stride: Annotated[int, Bounds(1)] = 1  # LPIPS is computed on every n-th clip
    perceptual_frames: Annotated[int, Bounds(1)] = 4  # and on every n-th frame of it


# Frames of a clip on a contact sheet, at most.
_SHOWN = 9
_GAP = 2  # pixels between clips side by side
_EVERY = 4  # frames between those of which evaluations compute LPIPS


class Video(Pixels):
    """The modality of video."""

    name = noun = feature = "video"
    unit = "pixel-frame"
    axes = ("T", "H", "W", "C")
    suffixes = SUFFIXES
    suffix = ".mp4"
    writes = SUFFIXES
    discriminator = "patchgan3d"
    data_fields, loss_fields = VideoData, FrameLoss
    shape_fields = ("frames", "resolution", "channels")
    folder_sources = frozenset(["folder"])
    rows: ClassVar[Rows] = {
        "psnr": ("PSNR of frames, dB", ".2f"),
        "ssim": ("SSIM of frames", ".4f"),
        "lpips": ("LPIPS of frames (VGG16)", ".4f"),
        "lpips_alex": ("LPIPS of frames (AlexNet)", ".4f"),
        "psnr_of_changes": ("PSNR of differences of frames, dB", ".2f"),
        "ssim_of_changes": ("SSIM of differences of frames", ".4f"),
        "lpips_of_changes": ("LPIPS of differences of frames (VGG16)", ".4f"),
        "psnr_worst_frame": ("PSNR of the worst frame index, dB", ".2f"),
        "l1": ("L1 on [-1, 1]", ".4f"),
    }

    def check(self, config: ConfigDict) -> None:
        super().check(config)
        if config.data.frame_rate and config.data.stride > 1:
            raise UserError("data.frame_rate and data.stride exclude each other: leave one out")

    def spec(self, data: ConfigDict) -> jax.ShapeDtypeStruct:
        side = data.resolution
        return jax.ShapeDtypeStruct((data.frames, side, side, data.channels), jnp.float32)

    def units(self, shape: Sequence[int]) -> int:
        return shape[0] * shape[1] * shape[2]

    # --- data ---

    def sources(self) -> Mapping[str, OpenSource]:
        return {
            "moving_emoji": open_moving_emoji,
            "one_emoji": partial(open_moving_emoji, alone=True),
            "folder": open_clips,
        }

    def prepare(
        self, data: ConfigDict, train: bool, condition: Callable | None = None
    ) -> Callable[..., dict[str, Any]]:
        return partial(_prepare, data=data, train=train)

    def preparation(self, data: ConfigDict) -> str:
        rate = f"{data.frame_rate:g} frames/s" if data.frame_rate else f"every {data.stride} frames"
        side = data.resolution if data.resize is None else data.resize
        size = f"shorter side to {side} by Lanczos" if side else "as large as they are"
        return (
            f"windows of {data.frames} frames, {rate.replace('every 1 ', 'all ')}, {size}, centre crop to "
            f"{data.resolution}, range [-1, 1], outputs clipped"
        )

    # --- losses and metrics ---

    def perceptual(self, config: ConfigDict, folder: Path | None = None) -> Callable | None:
        if not config.loss.perceptual_weight:
            return None
        return partial(_frame_lpips, load_lpips(folder=folder), config.loss.perceptual_frames)

    def metrics(self, config: ConfigDict) -> Callable[[Any, Any], dict[str, jax.Array]]:
        """Figures of frames, by their index, and of the differences of neighbouring frames."""
        nets = lpips_networks(config) if config.get("eval_lpips", True) else {}

        quick = {"psnr": metrics.psnr, "ssim": metrics.ssim}

        @jax.jit
        def per_clip(x, y):
            y = jnp.clip(y, -1.0, 1.0)
            b, t, *rest = x.shape

            def by_index(functions, a, b_):
                flat = [part.reshape(-1, *rest) for part in (a, b_)]
                return {name: f(*flat).reshape(b, -1) for name, f in functions.items()}

            def figures(a, b_):  # LPIPS takes most of the time
                return by_index(quick, a, b_) | by_index(nets, a[:, ::_EVERY], b_[:, ::_EVERY])

            values = {f"{k}_by_frame": v for k, v in figures(x, y).items()}
            values["l1"] = metrics.l1(*(part.reshape(b, t, -1, 1) for part in (x, y)))
            if t > 1:  # differences are halved, to be in the range of frames
                changes = [(part[:, 1:] - part[:, :-1]) / 2 for part in (x, y)]
                values |= {f"{k}_of_changes": v for k, v in figures(*changes).items()}
            return values

        return per_clip

    def summarize(self, means: dict[str, np.ndarray]) -> dict[str, Any]:
        figures: dict[str, Any] = {}
        for name, value in means.items():
            figures[name.removesuffix("_by_frame")] = float(np.mean(value))
            if name.endswith("_by_frame"):
                figures[name] = np.asarray(value).tolist()
        figures["psnr_worst_frame"] = min(figures["psnr_by_frame"])
        return figures

    def networks(self, inception: str = "", protocol: str = "adm") -> list[Network]:
        found = [fvd_network(inception)] if inception else []
        try:
            return found + frame_networks()
        except UserError as e:
            stderr(f"the Frechet distances of frames are left out: {e}")
            return found

    # --- examples and files ---

    def is_one(self, path: Path) -> bool:
        return path.is_file() or (path.is_dir() and bool(frames_in(path)))

    def read(self, path: Path, data: ConfigDict) -> Clip:
        return read_clip(path, data.channels)

    def write(self, raw: Any, path: Path) -> None:
        write_clip(as_clip(raw), path)

    def for_file(self, raw: np.ndarray, data: ConfigDict) -> Clip:
        """Returns a clip at the rate that the training data have, if the config says it."""
        rate = (
            Fraction(data.frame_rate).limit_denominator(1001) if data.frame_rate else DEFAULT_RATE
        )
        return as_clip(raw, rate)

    def side_by_side(self, a: Any, b: Any) -> Clip:
        first, second = as_clip(a), as_clip(b)
        count, height, width, channels = first.shape

        def frames() -> Iterator[np.ndarray]:
            for left, right in zip(first.frames(), second.frames(), strict=True):
                yield rows_of(np.stack([left, right]), gap=_GAP)

        return Clip((count, height, 2 * width + _GAP, channels), first.rate, frames)

    def preview(self, path: Path, *rows: np.ndarray) -> None:
        """Writes a contact sheet, and beside it the clips as one animation, a .gif.

        On the sheet, each clip is a line of its frames, and clips of one column are together.
        """
        wide = max(map(len, rows))
        grid = [
            np.concatenate([row, np.full_like(row[:1].repeat(wide - len(row), 0), 255)])
            for row in rows
        ]
        count = min(clips.shape[1] for clips in grid)
        moving = np.stack([rows_of(*(clips[:, t] for clips in grid)) for t in range(count)])
        write_clip(as_clip(moving), path.with_suffix(".gif"))
        lines = []
        for i in range(max(map(len, rows))):
            lines += [_spread(row[i]) for row in rows if i < len(row)]
        save_image(rows_of(*lines), path)


def _spread(clip: np.ndarray) -> np.ndarray:
    """Some frames of a clip, from the first to the last."""
    return clip[np.linspace(0, len(clip) - 1, min(_SHOWN, len(clip))).round().astype(int)]


def _frame_lpips(params: Any, stride: int, a_BTHWC: jax.Array, b_BTHWC: jax.Array) -> jax.Array:
    """LPIPS of some frames, averaged over each clip: float32 [B]."""
    a, b = (x[:, ::stride] for x in (a_BTHWC, b_BTHWC))
    distance = lpips(params, a.reshape(-1, *a.shape[2:]), b.reshape(-1, *b.shape[2:]))
    return distance.reshape(a.shape[:2]).mean(1)


def _prepare(
    example: dict[str, Any],
    rng: np.random.Generator | None = None,
    *,
    data: ConfigDict,
    train: bool,
) -> dict[str, Any]:
    """Brings frames to their number and size; all are cropped and flipped alike."""
    clip = example["x"]
    free = len(clip) - data.frames
    if free < 0:
        raise UserError(f"a video has {len(clip)} frames, and data.frames is {data.frames}")
    start = int(rng.integers(free + 1)) if rng is not None and train else 0
    seed = int(rng.integers(2**32)) if rng is not None else 0
    side = data.resolution if data.resize is None else data.resize
    frames = [
        fit(
            with_channels(frame, data.channels),
            data.resolution,
            side,
            np.random.default_rng(seed),
            train and data.crop == "random",
            train and data.flip,
        )
        for frame in clip[start : start + data.frames]
    ]
    return {"x": to_float(np.stack(frames)), "label": np.int32(example["label"])}

"""Clips as files: decodes parts of them, and writes them, with PyAV.

A clip may be longer than memory. `Clip` has its size and rate, and decodes its frames when they are needed.
Files of a variable rate get a constant one: frame k is the one shown at time k / rate, or the next one if that
begins nearer to this time.
"""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vq_jax.data.images import EXTENSIONS as IMAGES
from vq_jax.data.images import over_white, read_image, with_channels
from vq_jax.errors import UserError
from vq_jax.files import STDIO, writing

log = logging.getLogger("vq_jax")

SUFFIXES = frozenset([".mp4", ".m4v", ".webm", ".mkv", ".mov", ".avi", ".gif", ".webp"])
# Formats that keep every frame as it is.
EXACT = frozenset([".mkv", ".avi", ".webp"])
DEFAULT_RATE = Fraction(12)  # of frames without a rate, such as samples
MOST_PIXELS = 2**26  # of a frame
RATES = Fraction(1, 60), Fraction(1000)  # smallest and largest that are written
_MISSING = "files of video need PyAV: pip install 'vq_jax[video]'"


@dataclasses.dataclass(frozen=True)
class Clip:
    """A clip whose frames need not be in memory.

    Attributes:
      shape: (T, H, W, C).
      rate: frames a second.
      frames: () -> iterator over T frames, uint8 [H, W, C].
    """

    shape: tuple[int, int, int, int]
    rate: Fraction
    frames: Callable[[], Iterator[np.ndarray]]

    @property
    def nbytes(self) -> int:
        """Bytes of a frame, several of which are in memory at a time."""
        return int(np.prod(self.shape[1:]))

    def array(self) -> np.ndarray:
        """Returns all frames, uint8 [T, H, W, C]."""
        return np.stack(list(self.frames()))


def as_clip(raw: Any, rate: Fraction = DEFAULT_RATE) -> Clip:
    """Returns frames uint8 [T, H, W, C] as a `Clip`; a `Clip` stays as it is."""
    if isinstance(raw, Clip):
        return raw
    return Clip(raw.shape, rate, lambda: iter(raw))


def _av() -> Any:
    try:
        import av
    except ImportError as e:
        raise UserError(_MISSING) from e
    return av


def check_installed() -> None:
    """Raises UserError if PyAV is not installed."""
    _av()


# --- reading --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Info:
    """What the headers of a file say of its first video stream.

    Attributes:
      rate: average frames a second.
      count: number of frames at that rate, approximate unless it was counted.
      start: time of the first frame in seconds.
      height, width: of a frame, before rotation.
    """

    rate: Fraction
    count: int
    start: float
    height: int
    width: int


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """Opens a file and yields its container and video stream.

    Raises:
      UserError: it is no video, or damaged.
    """
    av = _av()
    try:
        with av.open(f"file:{path}", metadata_errors="replace") as container:
            if not container.streams.video:
                raise UserError(f"cannot read {path} as a video: it has no pictures")
            if container.streams.audio:
                say_no_sound()
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream
    except (av.error.FFmpegError, OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or e
        raise UserError(f"cannot read {path} as a video: {reason}") from e


@functools.cache
def say_no_sound() -> None:
    """Logs, once, that sound is left out."""
    log.warning("sound is left out: only the pictures of videos are read")


def probe(path: Path, count: bool = False) -> Info:
    """Reads the headers of a file.

    Args:
      path: the file.
      count: whether to read all packets, without decoding them, and to count the frames.

    Raises:
      UserError: it is no video, or damaged.
    """
    if path.suffix.lower() == ".webp":
        return _probe_animation(path)
    with _opened(path) as (container, stream):
        rate = stream.average_rate or stream.base_rate or stream.guessed_rate or DEFAULT_RATE
        size = stream.codec_context.height, stream.codec_context.width
        if not 0 < size[0] * size[1] <= MOST_PIXELS:
            raise UserError(
                f"cannot read {path} as a video: its frames are {size[1]}x{size[0]} pixels"
            )
        base = stream.time_base
        start = float((stream.start_time or 0) * base)
        length = stream.frames
        if not count and not length:
            seconds = stream.duration * base if stream.duration else container.duration / 1e6 \
                if container.duration else 0  # fmt: skip
            length = round(seconds * rate)
        if count or not length:
            packets = [p for p in container.demux(stream) if p.size]
            times = [(p.pts * base, (p.duration or 0) * base) for p in packets if p.pts is not None]
            if not packets:
                raise UserError(f"cannot read {path} as a video: it has no frames")
            length = len(packets)
            if times and container.format.name != "avi":  # AVI has no times of its own
                (first, _), (last, seconds) = min(times), max(times)
                start = float(first)
                length = round((last - first + (seconds or 1 / rate)) * rate)
        return Info(Fraction(rate), max(1, length), start, *size)


def decode_frames(
    path: Path, info: Info, rate: Fraction, first: int = 0, count: int | None = None
) -> Iterator[np.ndarray]:
    """Decodes frames at a constant rate.

    Args:
      path: the file.
      info: from `probe`.
      rate: frames a second.
      first: number of the first frame; earlier ones are skipped by seeking.
      count: number of frames; None is all.

    Yields:
      uint8 [H, W, 3], upright. There are fewer if the file ends before.

    Raises:
      UserError: it is damaged before the first frame that is asked for.
    """
    tolerance = float(min(1 / info.rate, 1 / rate)) / 2
    start = info.start + first / float(rate)
    webp = path.suffix.lower() == ".webp"
    decoded: Any = _animation(path) if webp else _decoded(path, info, start)
    shown: tuple[float, float, Any] | None = None
    made = 0

    def target() -> float:
        return start + made / float(rate)

    with contextlib.closing(decoded):
        for time, length, frame in decoded:
            while shown is not None and target() < time and made != count:
                if time - target() < min(tolerance, target() - shown[0]):
                    break  # this frame is nearer
                yield _array(shown[2])
                made += 1
            if made == count:
                return
            shown = time, length, frame
    while shown is not None and made != count and target() < shown[0] + shown[1] - 1e-3:
        yield _array(shown[2])
        made += 1


def _decoded(path: Path, info: Info, start: float) -> Iterator[tuple[float, float, Any]]:
    """Yields (time, seconds, frame) from a key frame before `start` to the last that can be decoded.

    AVI has no times of its own: its frames are counted, from the first one.
    """
    av = _av()
    period = 1 / float(info.rate)
    time = info.start - period
    with _opened(path) as (container, stream):
        counted = container.format.name == "avi"
        if start > info.start and not counted:
            container.seek(int(start / stream.time_base), stream=stream)
        try:
            for frame in container.decode(stream):
                known = frame.time is not None and not counted
                time = frame.time if known else time + period
                yield time, float((frame.duration or 0) * stream.time_base) or period, frame
        except av.error.FFmpegError as e:
            if time < info.start:
                raise
            log.warning("%s is damaged after %.1f s: %s", path, time, e.strerror)


def _animation(path: Path) -> Iterator[tuple[float, float, np.ndarray]]:
    """Yields (time, seconds, frame) of an animated WebP, over white; PyAV does not decode it."""
    with _pillow(path) as image:
        time = 0.0
        for i in range(getattr(image, "n_frames", 1)):
            image.seek(i)
            rgba = np.asarray(image.convert("RGBA"))  # decodes it, which sets its duration
            seconds = image.info.get("duration", 0) / 1000 or 1 / float(DEFAULT_RATE)
            yield time, seconds, over_white(rgba, 3)
            time += seconds


@contextlib.contextmanager
def _pillow(path: Path) -> Iterator[Any]:
    try:
        with Image.open(path) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"its frames are {image.width}x{image.height} pixels")
            yield image
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as e:
        raise UserError(f"cannot read {path} as a video: {e}") from e


def _probe_animation(path: Path) -> Info:
    with _pillow(path) as image:
        count = getattr(image, "n_frames", 1)
        times = []
        for i in range(count):
            image.seek(i)
            image.load()
            times.append(image.info.get("duration", 0) / 1000 or 1 / float(DEFAULT_RATE))
        rate = Fraction(count / sum(times)).limit_denominator(1001)
        return Info(rate, count, 0.0, image.height, image.width)


def _array(frame: Any) -> np.ndarray:
    if isinstance(frame, np.ndarray):
        return frame
    image = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def read_clip(path: Path, channels: int) -> Clip:
    """Opens a file, or a folder of numbered frames, as a clip.

    Frames that are missing at the end of a truncated file repeat the last one.

    Args:
      path: the file or folder.
      channels: 1 or 3.

    Raises:
      UserError: it cannot be read.
    """
    if path == STDIO:
        raise UserError("videos cannot be read from standard input: name a file")
    if path.is_dir():
        return _clip_of_images(path, channels)
    if path.suffix.lower() not in SUFFIXES:
        known = " ".join(sorted(SUFFIXES))
        raise UserError(f"cannot read {path} as a video: its suffix is none of {known}")
    info = probe(path, count=True)
    try:
        first = next(decode_frames(path, info, info.rate, 0, 1))
    except StopIteration as e:
        raise UserError(f"cannot read {path} as a video: no frame can be decoded") from e
    size = first.shape[:2]

    def frames() -> Iterator[np.ndarray]:
        made, frame = 0, first
        for frame in decode_frames(path, info, info.rate, 0, info.count):
            if frame.shape[:2] != size:
                raise UserError(f"cannot read {path}: its frames change their size")
            made += 1
            yield with_channels(frame, channels)
        if made < info.count:
            log.warning("%s: its last %d frames repeat the one before", path, info.count - made)
        for _ in range(made, info.count):
            yield with_channels(frame, channels)

    return Clip((info.count, *size, channels), info.rate, frames)


def read_frames(path: Path, channels: int) -> Clip:
    """Opens a file of video, a folder of frames, or an image, which is a clip of one frame.

    Raises:
      UserError: it cannot be read.
    """
    if path.is_dir() or path.suffix.lower() in SUFFIXES:
        return read_clip(path, channels)
    image = read_image(path, channels)
    return as_clip(image[None])


def _clip_of_images(folder: Path, channels: int) -> Clip:
    files = frames_in(folder)
    if not files:
        raise UserError(f"there are no frames in {folder}: number images in it")
    size = read_image(files[0], channels).shape[:2]

    def frames() -> Iterator[np.ndarray]:
        for file in files:
            frame = read_image(file, channels)
            if frame.shape[:2] != size:
                raise UserError(f"the frames of {folder} have different sizes")
            yield frame

    return Clip((len(files), *size, channels), DEFAULT_RATE, frames)


def frames_in(folder: Path) -> list[Path]:
    """Returns the images directly in a folder, in the order of the numbers in their names.

    There are none if the folder holds files of video, too.
    """
    visible = [p for p in folder.iterdir() if p.name[0] != "."]
    if any(p.suffix.lower() in SUFFIXES for p in visible):
        return []
    files = [p for p in visible if p.suffix.lower() in IMAGES]

    def key(path: Path) -> tuple:
        digits = "".join(c if c.isdigit() else " " for c in path.stem).split()
        return int(digits[-1]) if digits else 0, path.name

    return sorted(files, key=key)


# --- writing --------------------------------------------------------------------------------------

# suffix -> codec, pixel format for even and for odd sizes, options
_CODECS: dict[str, tuple[str, str, str, dict[str, str]]] = {
    ".mp4": ("libx264", "yuv420p", "yuv444p", {"crf": "12", "preset": "medium"}),
    ".webm": ("libvpx-vp9", "yuv420p", "yuv444p", {"crf": "16", "b": "0", "row-mt": "1"}),
    ".mkv": ("ffv1", "bgr0", "bgr0", {"level": "3"}),
    ".avi": ("ffv1", "bgr0", "bgr0", {}),
}
_CODECS[".m4v"] = _CODECS[".mov"] = _CODECS[".mp4"]
_BT709, _LIMITED = 1, 1  # FFmpeg's numbers of the colours of HD video
_PILLOW = frozenset([".gif", ".webp"])


def write_clip(clip: Clip, path: Path) -> None:
    """Writes a clip in the format of the suffix.

    Frames are written as they come. Only .gif and .webp are held in memory, by Pillow.

    Args:
      clip: the clip.
      path: the file; .mkv, .avi and .webp keep every pixel.

    Raises:
      UserError: the file cannot be written.
    """
    if path == STDIO:
        raise UserError("videos cannot be written to standard output: name a file")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(
            f"output: {path.suffix} is no format of video ({' '.join(sorted(SUFFIXES))})"
        )
    with writing(path) as temporary:
        if suffix in _PILLOW:
            _write_animation(clip, temporary)
        else:
            _write_stream(clip, temporary, _CODECS[suffix])


def _write_stream(clip: Clip, path: Path, how: tuple[str, str, str, dict[str, str]]) -> None:
    av = _av()
    codec, even, odd, options = how
    _, height, width, _ = clip.shape
    try:
        with av.open(f"file:{path}", "w") as container:
            stream = container.add_stream(codec, rate=clip.rate, options=options)
            stream.height, stream.width = height, width
            stream.pix_fmt = odd if height % 2 or width % 2 else even
            yuv = stream.pix_fmt.startswith("yuv")
            if yuv:
                context = stream.codec_context
                context.colorspace = context.color_primaries = context.color_trc = _BT709
                context.color_range = _LIMITED
            for image in clip.frames():
                pixels = np.ascontiguousarray(with_channels(image, 3))
                frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
                if yuv:
                    frame = frame.reformat(
                        format=stream.pix_fmt, dst_colorspace="ITU709", dst_color_range="MPEG"
                    )
                    frame.colorspace, frame.color_range = _BT709, _LIMITED
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    except av.error.FFmpegError as e:
        raise UserError(
            f"output: a video of {width}x{height} pixels cannot be written as {path.suffix}: {e.strerror}"
        ) from e


def _write_animation(clip: Clip, path: Path) -> None:
    images = (Image.fromarray(with_channels(frame, 3)) for frame in clip.frames())
    options: dict[str, Any] = {"lossless": True} if path.suffix.lower() == ".webp" else {}
    duration = max(20, round(1000 / float(clip.rate)))
    next(images).save(
        path, save_all=True, append_images=images, duration=duration, loop=0, **options
    )

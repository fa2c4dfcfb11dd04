"""What the tabs of the page share: errors, uploads, pictures and examples."""

import contextlib
import functools
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from vq_jax import files
from vq_jax.codec.bitstream import SUFFIX
from vq_jax.data.images import decode, read_image, save_image
from vq_jax.errors import UserError
from vq_jax.page.models import Described

log = logging.getLogger("vq_jax")

UPLOAD = 64 * 2**20  # largest file, in bytes
PIXELS = 16_000_000  # of the largest image
NO_IMAGE = "image yet: upload one, or choose an example below"  # see `needed`
HOUR = 3600  # seconds after which results are removed
# All work waits in one queue: models are compiled and cached by one call at a time.
ONE: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
PROGRESS: Any = gr.Progress()  # as a default, Gradio gives a function its own
_SHOWN = 256  # smaller pictures are enlarged by a whole factor up to this side


def upload() -> gr.Image:
    """A place for an image file, whose path is passed on unread: `read_upload` describes what is wrong with it."""
    place: Any = gr.Image(
        label="Image", type="filepath", sources=["upload", "clipboard"], height=300
    )
    place.preprocess = lambda payload: None if payload is None else payload.path
    return place


def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Shows the message of a user's mistake on the page; other errors are logged, and shown as one line."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (UserError, ValueError) as e:
            raise gr.Error(str(e), duration=20, print_exception=False) from e
        except Exception as e:
            log.exception("the page: %s failed", function.__name__)
            raise gr.Error(
                "this did not work; the server's log says why", print_exception=False
            ) from e

    return wrapped


def needed(value: Any, what: str) -> Any:
    """Returns a value.

    Raises:
      UserError: it is missing; `what` says what to give.
    """
    if value is None or (isinstance(value, str) and not value):
        raise UserError(f"there is no {what}")
    return value


def whole(value: float | None, name: str) -> int:
    """Returns the whole number in a field.

    Raises:
      UserError: the field is empty, or negative.
    """
    if value is None or not value >= 0:
        raise UserError(f"{name} is empty: give a whole number from 0")
    return int(value)


def read_upload(path: str | None, channels: int = 3, most: int | None = None) -> np.ndarray:
    """Reads an uploaded image, uint8 [H, W, channels].

    Args:
      path: of the file.
      channels: number of colours.
      most: a larger image is scaled down to sides of at most this number of pixels; None keeps it.

    Raises:
      UserError: there is none, it cannot be read, or has more pixels than `PIXELS`.
    """
    file = Path(needed(path, NO_IMAGE))
    with without_folder(file):
        image = read_image(file, channels, most_pixels=PIXELS)
    return image if most is None else shrunk(image, most)


@contextlib.contextmanager
def without_folder(file: Path) -> Iterator[None]:
    """Leaves Gradio's folder out of messages on an uploaded file."""
    try:
        yield
    except UserError as e:
        raise UserError(str(e).replace(str(file), file.name)) from e


def shrunk(image: np.ndarray, most: int, resample: Any = Image.Resampling.LANCZOS) -> np.ndarray:
    """Scales an image uint8 [H, W, C], or [H, W], down to sides of at most `most` pixels."""
    height, width = image.shape[:2]
    if max(height, width) <= most:
        return image
    scale = most / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    plain = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
    small = np.asarray(Image.fromarray(plain).resize(size, resample))
    return small.reshape(*small.shape[:2], *image.shape[2:])


def enlarged(image: np.ndarray, side: int = _SHOWN) -> np.ndarray:
    """Repeats the pixels of a small image [H, W, ...], so that a browser does not blur them."""
    factor = max(1, side // max(image.shape[:2]))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def shown(image: np.ndarray) -> np.ndarray:
    """An image as the page's components take it: colours uint8 [H, W, 3]."""
    return np.broadcast_to(image, (*image.shape[:2], 3)) if image.shape[-1] == 1 else image


@functools.cache
def folder() -> Path:
    """Returns the folder of this server's results and examples, which is removed when it ends."""
    return files.folder_of_process("vq_jax_page_")


def temporary(suffix: str) -> Path:
    """Returns the path of a new file, which Gradio copies into its cache; removes those older than an hour."""
    for old in folder().glob("result_*"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > HOUR:
                shutil.rmtree(old)
    return Path(tempfile.mkdtemp(prefix="result_", dir=folder())) / f"result{suffix}"


def download(data: bytes) -> gr.DownloadButton:
    """Returns the button that downloads a .vqz file with this content."""
    target = temporary(SUFFIX)
    target.write_bytes(data)
    return gr.DownloadButton(value=str(target), interactive=True)


def menu(models: Sequence[Described]) -> gr.Dropdown:
    """A menu of models, which is hidden if there is only one."""
    names = [m.name for m in models]
    return gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1)


@functools.cache
def example_images() -> dict[str, list[str]]:
    """Writes images of installed packages to files: "emoji", "large emoji" and "photos"; none where they are missing."""
    from vq_jax.data import builders  # TensorFlow Datasets takes a while

    found: dict[str, list[str]] = {"emoji": [], "large emoji": [], "photos": []}
    try:
        for path in builders.emoji_splits()["test"][::60][:8]:
            emoji = Image.fromarray(decode(path))
            for kind, side in (("emoji", 32), ("large emoji", 256)):
                target = folder() / f"{path.stem}_{side}.png"
                save_image(np.asarray(emoji.resize((side, side), Image.Resampling.LANCZOS)), target)
                found[kind].append(str(target))
        for place in builders.TEST_PHOTOS.values():
            package, _, inside = place.partition("/")
            found["photos"].append(str(builders.package_folder(package) / inside))
    except UserError:
        pass  # the extra `demo` is not installed
    return {kind: [p for p in paths if Path(p).is_file()] for kind, paths in found.items()}

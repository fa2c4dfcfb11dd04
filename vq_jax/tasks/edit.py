"""Edits files with a trained prior: images, clips, and gaps in texts."""

import collections
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vq_jax import config as configs
from vq_jax import editing, modalities, text_editing, video_editing
from vq_jax.console import stderr
from vq_jax.data.images import LOSSY, read_mask, rows_of
from vq_jax.data.video import EXACT, SUFFIXES, as_clip, read_frames
from vq_jax.errors import UserError
from vq_jax.files import STDIO
from vq_jax.prior import TrainedPrior
from vq_jax.runs import find, load_prior
from vq_jax.tasks.files import (
    change_files,
    change_images,
    check_input,
    check_output,
    pair_files,
)


def _mask(path: Path | None) -> np.ndarray:
    if path is None:
        raise UserError("inpaint needs a mask: give an image that is white where to draw")
    if not path.exists():
        raise UserError(f"mask: {path} does not exist; give an image that is white where to draw")
    mask, how = read_mask(path)
    if not mask.any():
        raise UserError(f"mask: no pixel of {path} is white; mark in white where to draw")
    if how != "white":
        stderr(f"{path} has transparency: its {how} pixels are the mask")
    return mask


def _margins(text: str) -> tuple[int, int, int, int]:
    parts = text.replace(" ", "").split(",")
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 4
    if len(numbers) != 4:
        raise UserError(
            f"margins is {text!r}: give pixels to add as top,right,bottom,left, or one number"
        )
    top, right, bottom, left = numbers
    return top, right, bottom, left


def _variations(prior, image, *, share, count, **how):
    return rows_of(np.stack([image, *editing.variations(prior, image, share, count, **how)]))


def edit(
    name: str,
    workdir: Path,
    *,
    tokenizer: Path | None = None,
    input: Path,
    output: Path,
    label: Sequence[str] = (),
    **how: Any,
) -> None:
    """`--mode=inpaint`, `outpaint`, `upscale`, `restore`, `variations`, `predict` and `interpolate`.

    Args:
      name: of the edit.
      workdir: the prior's run.
      tokenizer: the tokenizer's run, if it is not the one in the prior's config.
      input, output: a file, or a folder of files, and the file or folder to write.
      label: at most one class, by name or number.
      **how: of the edit, see `edit_images`, `edit_texts` and `edit_videos`, and of the sampling, see `TrainedPrior.fill`.

    Raises:
      UserError: the files of this modality cannot be edited in this way, or see the edit.
    """
    if len(label) > 1:
        raise UserError(f"label has {len(label)} values: {name} takes one")
    modality = modalities.of(configs.load(find(workdir) / configs.FILE))
    if modality.name not in EDITS:
        *names, last = (f"{name}s" for name in EDITS)
        raise UserError(
            f"edits are for {', '.join(names)} and {last}: this run's data are {modality.noun}s"
        )
    how["label"] = label[0] if label else None
    EDITS[modality.name](name, workdir, tokenizer, input, output, **how)


def edit_images(
    name: str,
    workdir: Path,
    tokenizer: Path | None,
    input: Path,
    output: Path,
    *,
    mask: Path | None = None,
    gap: str | None = None,
    margins: str = "",
    factor: int | None = None,
    share: float = 0.5,
    count: int = 4,
    **how: Any,
) -> None:
    """Edits images.

    Args:
      name, workdir, tokenizer, input, output: as for `edit`.
      mask: inpaint: an image of where to draw; see `images.read_mask`.
      gap: for texts.
      margins: outpaint: pixels to add, as "top,right,bottom,left".
      factor: upscale: how many times larger; None is the factor of the prior.
      share: variations: share of the codes to sample again.
      count: variations: number of variations, in a row after the original.
      **how: label, candidates, seed and more; see `editing.fill_grid`.
    """
    changes: dict[str, Callable[[], Callable[..., np.ndarray]]] = {
        "inpaint": lambda: partial(editing.inpaint, mask=_mask(mask)),
        "outpaint": lambda: partial(editing.outpaint, margins=_margins(margins)),
        "upscale": lambda: partial(editing.upscale, factor=factor),
        "restore": lambda: editing.restore,
        "variations": lambda: partial(_variations, share=share, count=count),
    }
    # Fail before anything is loaded.
    if name not in changes:
        raise UserError(f"{name} is for videos: this run's data are images")
    if gap is not None:
        raise UserError("gap is for texts: images have a mask")
    pairs = pair_files(input, output)
    change = changes[name]()
    if name == "inpaint" and input.is_dir():
        raise UserError(f"input: {input} is a folder; a mask is for one image")
    suffix = pairs[0][1].suffix.lower()
    keeps = name in ("inpaint", "outpaint")
    if keeps and suffix in LOSSY:
        stderr(
            f"the format {suffix} also changes the other pixels slightly, and may lose transparency; "
            ".png keeps both"
        )
    prior: TrainedPrior = load_prior(workdir, tokenizer)
    editing.check_prior(prior)
    prior.labels(how["label"], 1)
    channels = prior.tokenizer.config.data.channels
    change_images(
        pairs, channels, lambda image: change(prior, image, **how), _DONE[name], alpha=keeps
    )


def edit_texts(
    name: str,
    workdir: Path,
    tokenizer: Path | None,
    input: Path,
    output: Path,
    *,
    gap: str = "_",
    mask: Path | None = None,
    **how: Any,
) -> None:
    """Fills the gaps of texts, which a character marks.

    Args:
      name, workdir, tokenizer, input, output: as for `edit`.
      gap: the character that stands for each byte to draw.
      mask: for images.
      **how: label, candidates, seed and more; see `text_editing.fill_gap`.
    """
    if name != "inpaint" or mask is not None:
        raise UserError(f"{name}{' with a mask' if mask else ''} is not for texts")
    prior = load_prior(workdir, tokenizer)
    text_editing.check_prior(prior)
    prior.labels(how["label"], 1)
    modality = prior.modality

    def work(texts: list[np.ndarray]) -> Iterator[np.ndarray | UserError]:
        for text in texts:
            try:
                where = text_editing.read_gap(text, gap)
                yield text_editing.fill_gap(prior, text, where, **how)
            except UserError as e:
                yield e

    change_files(
        pair_files(input, output, (modality.suffix,), modality.suffix, modality.noun),
        read=lambda path: modality.read(path, prior.config.data),
        work=work,
        write=modality.write,
        verb=_DONE[name],
        nbytes=len,
    )


def edit_videos(
    name: str,
    workdir: Path,
    tokenizer: Path | None,
    input: Path,
    output: Path,
    *,
    mask: Path | None = None,
    gap: str | None = None,
    frames: int = 16,
    to: Path | None = None,
    **how: Any,
) -> None:
    """Edits clips.

    Args:
      name, workdir, tokenizer, input, output: as for `edit`; the input is one file, or a folder of frames.
      mask: inpaint: an image, or a clip as long as the input, that is white where to draw.
      gap: for texts.
      frames: predict: number of frames to append.
      to: interpolate: an image, or a clip whose first frame is the last one of the result.
      **how: label, candidates, seed and more; see `video_editing.predict`.
    """
    if gap is not None:
        raise UserError("gap is for texts: videos have a mask")
    if name not in ("inpaint", "predict", "interpolate"):
        raise UserError(f"{name} is for images: this run's data are videos")
    check_input(input)
    if STDIO in (input, output):
        raise UserError("standard input and output cannot hold videos: name files")
    if input.resolve() == output.resolve():
        raise UserError(f"output: {output} is the input; name another file")
    check_output(output, SUFFIXES)
    if output.suffix.lower() not in EXACT:
        stderr(f"the format {output.suffix} changes all frames slightly; .mkv keeps those given")
    where = _video_mask(mask) if name == "inpaint" else None
    if name == "interpolate" and to is None:
        raise UserError("interpolate needs to: an image or a clip that the result ends with")
    prior = load_prior(workdir, tokenizer)
    video_editing.check_prior(prior, after=name == "interpolate")
    prior.labels(how["label"], 1)
    channels = prior.tokenizer.config.data.channels
    clip = read_frames(input, channels)
    if name == "predict":
        result = video_editing.predict(prior, clip.array(), frames, **how)
    elif name == "interpolate":
        last = next(read_frames(to, channels).frames())  # type: ignore[arg-type]
        (first,) = collections.deque(clip.frames(), maxlen=1)
        result = video_editing.interpolate(prior, first, last, **how)
    else:
        result = video_editing.inpaint(prior, clip.array(), where, **how)  # type: ignore[arg-type]
    prior.modality.write(as_clip(result, clip.rate), output)
    print(f"{_DONE[name]} {input} into {output}: {len(result)} frames")


def _video_mask(path: Path | None) -> np.ndarray:
    """Reads a mask: bool [H, W] of an image, or [T, H, W] of a clip."""
    if path is not None and path.exists() and (path.is_dir() or path.suffix.lower() in SUFFIXES):
        mask = read_frames(path, 1).array()[..., 0] > 127
        mask = mask[0] if len(mask) == 1 else mask
        if not mask.any():
            raise UserError(f"mask: no pixel of {path} is white; mark in white where to draw")
        return mask
    return _mask(path)


# modality -> its edits
EDITS: dict[str, Callable[..., None]] = {
    "image": edit_images,
    "text": edit_texts,
    "video": edit_videos,
}

_DONE = {
    "inpaint": "inpainted",
    "outpaint": "extended",
    "upscale": "enlarged",
    "restore": "restored",
    "variations": "varied",
    "predict": "continued",
    "interpolate": "interpolated",
}

"""Edits image files with a trained prior."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vq_jax import editing
from vq_jax.console import stderr
from vq_jax.data.images import LOSSY, read_mask, rows_of
from vq_jax.errors import UserError
from vq_jax.prior import TrainedPrior
from vq_jax.runs import load_prior
from vq_jax.tasks.files import change_images, pair_files


def _mask(path: Path | None) -> np.ndarray:
    if path is None or not path.exists():
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
    mask: Path | None = None,
    margins: str = "",
    factor: int | None = None,
    share: float = 0.5,
    count: int = 4,
    label: Sequence[str] = (),
    **how: Any,
) -> None:
    """`--mode=inpaint`, `outpaint`, `upscale`, `restore` and `variations`.

    Args:
      name: of the edit.
      workdir: the prior's run.
      tokenizer: the tokenizer's run, if it is not the one in the prior's config.
      input, output: an image, or a folder of images, and the file or folder to write.
      mask: inpaint: an image of where to draw; see `images.read_mask`.
      margins: outpaint: pixels to add, as "top,right,bottom,left".
      factor: upscale: how many times larger; None is the factor of the prior.
      share: variations: share of the codes to sample again.
      count: variations: number of variations, in a row after the original.
      label: at most one class, by name or number.
      **how: candidates, seed and more; see `editing.fill_grid`.
    """
    changes: dict[str, Callable[[], Callable[..., np.ndarray]]] = {
        "inpaint": lambda: partial(editing.inpaint, mask=_mask(mask)),
        "outpaint": lambda: partial(editing.outpaint, margins=_margins(margins)),
        "upscale": lambda: partial(editing.upscale, factor=factor),
        "restore": lambda: editing.restore,
        "variations": lambda: partial(_variations, share=share, count=count),
    }
    # Fail before anything is loaded.
    pairs = pair_files(input, output)
    change = changes[name]()
    if name == "inpaint" and input.is_dir():
        raise UserError(f"input: {input} is a folder; a mask is for one image")
    if len(label) > 1:
        raise UserError(f"label has {len(label)} values: {name} takes one")
    suffix = pairs[0][1].suffix.lower()
    keeps = name in ("inpaint", "outpaint")
    if keeps and suffix in LOSSY:
        stderr(
            f"the format {suffix} also changes the other pixels slightly, and may lose transparency; "
            ".png keeps both"
        )
    prior: TrainedPrior = load_prior(workdir, tokenizer)
    editing.check_prior(prior)
    how["label"] = label[0] if label else None
    prior.labels(how["label"], 1)
    channels = prior.tokenizer.config.data.channels
    change_images(
        pairs, channels, lambda image: change(prior, image, **how), _DONE[name], alpha=keeps
    )


_DONE = {
    "inpaint": "inpainted",
    "outpaint": "extended",
    "upscale": "enlarged",
    "restore": "restored",
    "variations": "varied",
}

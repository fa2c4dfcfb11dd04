"""Changes images through a trained prior: the commands over `editing.py`."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vq_jax import editing
from vq_jax.data.images import LOSSY, read_mask, rows_of
from vq_jax.errors import UserError
from vq_jax.prior import TrainedPrior, load_prior
from vq_jax.tasks.files import change_images, pair_files
from vq_jax.training.report import stderr


def _mask(path: Path | None) -> np.ndarray:
    if path is None or not path.exists():
        raise UserError(f"there is no {path}: --mask takes an image that is white where to draw")
    mask, how = read_mask(path)
    if not mask.any():
        raise UserError(f"nothing of {path} is white: --mask marks in white what to draw")
    if how != "white":
        stderr(f"{path} has transparency: drawn where it is {how}")
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
            f"--margins={text}: pixels to add at top,right,bottom,left, as 0,32,0,32, or one number"
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
      name: which.
      workdir: the prior's run.
      tokenizer: the tokenizer's, where it is elsewhere than the prior's config says.
      input, output: an image, or a folder of images, and where to write.
      mask: inpaint: an image that says where to draw; see `images.read_mask`.
      margins: outpaint: pixels to add, as "top,right,bottom,left".
      factor: upscale: how many times larger; None is as the prior was trained.
      share: variations: of the codes to draw anew.
      count: variations: how many; they come in a row after the original.
      label: none or one, a class by name or number.
      **how: candidates, seed and more; see `editing.fill_grid`.
    """
    changes: dict[str, Callable[[], Callable[..., np.ndarray]]] = {
        "inpaint": lambda: partial(editing.inpaint, mask=_mask(mask)),
        "outpaint": lambda: partial(editing.outpaint, margins=_margins(margins)),
        "upscale": lambda: partial(editing.upscale, factor=factor),
        "restore": lambda: editing.restore,
        "variations": lambda: partial(_variations, share=share, count=count),
    }
    # What is wrong with them is said before anything is loaded.
    pairs = pair_files(input, output)
    change = changes[name]()
    if name == "inpaint" and input.is_dir():
        raise UserError(f"--input={input} is a folder: a mask is for one image")
    if len(label) > 1:
        raise UserError(f"--label is given {len(label)} times: {name} takes one")
    suffix = pairs[0][1].suffix.lower()
    keeps = name in ("inpaint", "outpaint")
    if keeps and suffix in LOSSY:
        stderr(
            f"a {suffix} file changes the other pixels a little, too, and may have no transparency: a "
            ".png file keeps both"
        )
    prior: TrainedPrior = load_prior(workdir, tokenizer)
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

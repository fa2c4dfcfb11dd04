"""Draws images from a trained prior."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from vq_jax.data.images import rows_of, save_image, to_uint8
from vq_jax.errors import UserError
from vq_jax.prior import load_prior

_AT_ONCE = 32
_MOST = 1024  # images in grid.png at most


def sample(
    workdir: Path,
    *,
    tokenizer: Path | None,
    output: Path,
    count: int,
    labels: list[str],
    **how: Any,
) -> None:
    """`--mode=sample`: writes images from noise, each to a file, and all to grid.png.

    Args:
      workdir: the prior's run.
      tokenizer: the tokenizer's, where it is elsewhere than the prior's config says.
      output: the folder to write.
      count: how many images, of each label.
      labels: names or numbers of classes; none draws without.
      **how: seed and more; see `TrainedPrior.sample_codes`.
    """
    if count < 1:
        raise UserError(f"--count is {count}: use 1 or more")
    if output.is_file():
        raise UserError(f"--output={output} is a file: name a folder")
    prior = load_prior(workdir, tokenizer)
    wanted = [label for label in labels or [""] for _ in range(count)]
    if labels:
        prior.labels(labels, len(labels))  # rather now than after half of them
    shown: list[np.ndarray] = []
    starts = range(0, len(wanted), _AT_ONCE)
    for start in track(starts, "sampling", transient=True, disable=len(starts) < 2):
        part = wanted[start : start + _AT_ONCE]
        drawn = prior.sample(len(part), label=part if labels else None, first=start, **how)
        for i, image in enumerate(to_uint8(drawn), start):
            save_image(image, output / f"{i:05d}.png")
            if i < _MOST:
                shown.append(image)
    wide = count if labels and count <= 32 else min(len(shown), 16)
    blank = [np.full_like(shown[0], 255)] * (-len(shown) % wide)
    rows = np.stack(shown + blank).reshape(-1, wide, *shown[0].shape)
    save_image(rows_of(*rows), output / "grid.png")
    print(f"{len(wanted)} images and grid.png are in {output}")

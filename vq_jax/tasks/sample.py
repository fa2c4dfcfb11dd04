"""Draws images from a trained prior."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vq_jax.data.images import rows_of, save_image, to_uint8
from vq_jax.errors import UserError
from vq_jax.files import write
from vq_jax.prior import load_prior
from vq_jax.training.report import track

_AT_ONCE = 32
_MOST = 1_000_000  # images of one call
_SHOWN = 1024  # images in grid.png at most
_RECORD = ".samples.json"  # beside the images: how many there are


def sample(
    workdir: Path,
    *,
    tokenizer: Path | None = None,
    output: Path | None = None,
    count: int = 16,
    labels: Sequence[str] = (),
    **how: Any,
) -> None:
    """`--mode=sample`: writes images from noise, each to a file, and all to grid.png.

    Images that an earlier call has written there, and this one does not write again, are removed.

    Args:
      workdir: the prior's run.
      tokenizer: the tokenizer's, where it is elsewhere than the prior's config says.
      output: the folder to write; None is `samples` in the run's folder.
      count: how many images, of each label.
      labels: names or numbers of classes; none draws without.
      **how: seed and more; see `TrainedPrior.sample_codes`.
    """
    total = count * max(1, len(labels))
    if count < 1:
        raise UserError(f"--count is {count}: use 1 or more")
    if total > _MOST:
        raise UserError(f"--count={count} makes {total:,} images: at most {_MOST:,} in one call")
    output = output or workdir / "samples"
    if output.is_file():
        raise UserError(f"--output={output} is a file: name a folder")
    before = _written_before(output)
    if not before and (output / "00000.png").exists() and not (output / "grid.png").exists():
        raise UserError(f"{output} holds an image 00000.png of your own: name another folder")
    prior = load_prior(workdir, tokenizer)
    if labels:
        prior.labels(labels, len(labels))  # rather now than after half of them
    shown: list[np.ndarray] = []
    for start in track(range(0, total, _AT_ONCE), "sampling"):
        numbers = range(start, min(start + _AT_ONCE, total))
        part = [labels[i // count] for i in numbers] if labels else None
        drawn = prior.sample(len(numbers), label=part, first=start, **how)
        for i, image in zip(numbers, to_uint8(drawn), strict=True):
            save_image(image, output / f"{i:05d}.png")
            if i < _SHOWN:
                shown.append(image)
    wide = count if labels and count <= 32 else min(len(shown), 16)
    blank = [np.full_like(shown[0], 255)] * (-len(shown) % wide)
    rows = np.stack(shown + blank).reshape(-1, wide, *shown[0].shape)
    save_image(rows_of(*rows), output / "grid.png")
    older = [output / f"{i:05d}.png" for i in range(total, before)]
    for path in older:
        path.unlink(missing_ok=True)
    write(json.dumps({"images": total}).encode(), output / _RECORD)
    print(f"{total} images and grid.png are in {output}")
    if older:
        print(f"removed {len(older)} images of an earlier call")


def _written_before(folder: Path) -> int:
    """How many images the last call has written into a folder."""
    try:
        return min(int(json.loads((folder / _RECORD).read_text())["images"]), _MOST)
    except (OSError, ValueError, KeyError, TypeError):
        return 0

"""Samples examples from a trained prior."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vq_jax import config as configs
from vq_jax import modalities
from vq_jax.console import track
from vq_jax.errors import UserError
from vq_jax.files import ships, write
from vq_jax.runs import find, load_prior

_AT_ONCE = 32
_MOST = 1_000_000  # samples of one call
_SHOWN = 1024  # largest number of samples that are shown together
_RECORD = ".samples.json"  # beside the samples: their number


def sample(
    workdir: Path,
    *,
    tokenizer: Path | None = None,
    output: Path | None = None,
    count: int = 16,
    labels: Sequence[str] = (),
    prompt: str | None = None,
    **how: Any,
) -> None:
    """`--mode=sample`: writes samples, each to a file, and all to one, "grid"; prints texts.

    Removes the samples of an earlier call that this one does not overwrite.

    Args:
      workdir: the prior's run.
      tokenizer: the tokenizer's run, if it is not the one in the prior's config.
      output: the folder to write; None is `samples` in the run's folder, or for a model that ships here.
      count: number of samples, of each label.
      labels: names or numbers of classes; () samples without a label.
      prompt: a text that samples of texts continue; None samples them from the start.
      **how: seed and more; see `TrainedPrior.sample_codes`.
    """
    total = count * max(1, len(labels))
    if count < 1:
        raise UserError(f"count is {count}: use 1 or more")
    if total > _MOST:
        raise UserError(f"count={count} makes {total:,} samples: at most {_MOST:,} in one call")
    folder = find(workdir)
    output = output or (Path() if ships(folder) else folder) / "samples"
    if output.is_file():
        raise UserError(f"output: {output} is a file; name a folder")
    before = _written_before(output)
    modality = modalities.of(configs.load(folder / configs.FILE))
    files = [output / f"{i:05d}{modality.suffix}" for i in range(max(total, before))]
    grid = output / f"grid{modality.preview_suffix}"
    if not before and files[0].exists() and not grid.exists():
        raise UserError(f"output: {files[0]} was not written by sample; name another folder")
    prior = load_prior(folder, tokenizer)
    if labels:
        prior.labels(labels, len(labels))  # fail early
    if prompt is not None:
        how["prompt"] = prompt
    shown: list[np.ndarray] = []
    for start in track(range(0, total, _AT_ONCE), "sampling"):
        numbers = range(start, min(start + _AT_ONCE, total))
        part = [labels[i // count] for i in numbers] if labels else None
        samples = modality.to_raw(prior.sample(len(numbers), label=part, first=start, **how))
        for i, raw in zip(numbers, samples, strict=True):
            modality.write(modality.for_file(raw, prior.config.data), files[i])
            if (text := modality.shown(raw)) is not None:
                print(f"--- {files[i].name}\n{text}")
            if i < _SHOWN:
                shown.append(raw)
    wide = count if labels and count <= 32 else min(len(shown), 16)
    rows = [np.stack(shown[i : i + wide]) for i in range(0, len(shown), wide)]
    modality.preview(grid, *rows)
    older = files[total:]
    for path in older:
        path.unlink(missing_ok=True)
    write(json.dumps({"images": total}).encode(), output / _RECORD)
    print(f"{total} {modality.noun}s and {grid.name} are in {output}")
    if older:
        print(f"removed {len(older)} {modality.noun}s of an earlier call")


def _written_before(folder: Path) -> int:
    """Number of samples that the last call wrote into a folder."""
    try:
        return min(int(json.loads((folder / _RECORD).read_text())["images"]), _MOST)
    except (OSError, ValueError, KeyError, TypeError):
        return 0

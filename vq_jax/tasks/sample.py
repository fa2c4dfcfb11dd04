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
_SUFFIXES = {modality.suffix for modality in modalities.MODALITIES.values()}
_RECORD = ".samples.json"  # beside the samples: their number, by suffix


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
    modality = modalities.of(configs.load(folder / configs.FILE))
    suffix, before = modality.suffix, _written_before(output, modality.suffix)
    names, earlier = _names({suffix: total}), set(_names(before))
    present = {path.name for path in output.iterdir()} if output.is_dir() else set()
    if others := (present & set(names)) - earlier:
        raise UserError(
            f"output: {output / min(others)} was not written by sample; name another folder"
        )
    grid = output / f"grid{modality.preview_suffix}"
    prior = load_prior(folder, tokenizer)
    if labels:
        prior.labels(labels, len(labels))  # fail early
    if prompt is not None:
        how["prompt"] = prompt
    _record(output, before | {suffix: max(total, before.get(suffix, 0))})
    shown: list[np.ndarray] = []
    for start in track(range(0, total, _AT_ONCE), "sampling"):
        numbers = range(start, min(start + _AT_ONCE, total))
        part = [labels[i // count] for i in numbers] if labels else None
        samples = modality.to_raw(prior.sample(len(numbers), label=part, first=start, **how))
        for i, raw in zip(numbers, samples, strict=True):
            modality.write(modality.for_file(raw, prior.config.data), output / names[i])
            if (text := modality.shown(raw)) is not None:
                print(f"--- {names[i]}\n{text}")
            if i < _SHOWN:
                shown.append(raw)
    wide = count if labels and count <= 32 else min(len(shown), 16)
    rows = [np.stack(shown[i : i + wide]) for i in range(0, len(shown), wide)]
    modality.preview(grid, *rows)
    older = (present & earlier) - set(names)
    for name in older:
        (output / name).unlink(missing_ok=True)
    _record(output, {suffix: total})
    print(f"{total} {modality.noun}s and {grid.name} are in {output}")
    if older:
        print(f"removed {len(older)} samples of an earlier call")


def _names(counts: dict[str, int]) -> list[str]:
    """The names of samples, by their number for each suffix."""
    return [f"{i:05d}{suffix}" for suffix, count in counts.items() for i in range(count)]


def _record(folder: Path, counts: dict[str, int]) -> None:
    write(json.dumps(counts).encode(), folder / _RECORD)


def _written_before(folder: Path, suffix: str) -> dict[str, int]:
    """Number of samples that earlier calls wrote into a folder, by suffix; old records have none, and get `suffix`."""
    try:
        found = json.loads((folder / _RECORD).read_text())
        counts = {suffix if k == "images" else str(k): min(int(n), _MOST) for k, n in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
    return {k: n for k, n in counts.items() if k in _SUFFIXES}

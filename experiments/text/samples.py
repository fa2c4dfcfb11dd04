"""Samples of the text priors: their bits per byte under the prior over bytes, and distinct n-grams.

    python -m experiments.text.samples --output=experiments/text

Writes samples.json and samples.md, a page of the first samples, uncut. Real text is measured in windows of the
same length, as many as there are samples, spread over the held-out books.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np

from vq_jax import files, modalities, runs
from vq_jax.prior import TrainedPrior

_COUNT = 64  # samples of each prior
_SHOWN = 4
_TEMPERATURES = (1.0, 0.8)
_PROMPT = "And Jesus said unto them, "


def bits_per_byte(judge: TrainedPrior, x: np.ndarray) -> float:
    """Returns the bits per byte of texts int [N, L] under a prior over bytes."""
    return float(-judge.log_probability(x).mean() / math.log(2))


def distinct(texts: list[str], n: int) -> float:
    """Returns the share of word n-grams of all texts that differ from each other (Li et al. 2016)."""
    found = [
        tuple(words[i : i + n])
        for words in (text.split() for text in texts)
        for i in range(len(words) - n + 1)
    ]
    return len(set(found)) / len(found)


def figures(judge: TrainedPrior, x: np.ndarray) -> dict[str, float]:
    """Measures texts int [N, L]."""
    texts = [judge.modality.shown(raw) or "" for raw in judge.modality.to_raw(x)]
    return {
        "bits_per_byte": bits_per_byte(judge, x),
        **{f"distinct_{n}": distinct(texts, n) for n in (1, 2, 3)},
    }


def main() -> None:
    """Draws the samples, and writes their figures and the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--text-prior", type=Path, default=Path("runs/prior_text_kjv"))
    parser.add_argument("--bytes-prior", type=Path, default=Path("runs/bytes_kjv-long"))
    parser.add_argument("--output", type=Path, default=Path("."))
    arguments = parser.parse_args()
    judge = runs.load_prior(arguments.bytes_prior)
    priors = {
        "prior over bytes": judge,
        "prior over codes": runs.load_prior(arguments.text_prior),
    }
    val = modalities.open_source(judge.config).val
    prepare = judge.modality.prepare(judge.config.data, train=False)
    places = np.linspace(0, len(val) - 1, _COUNT).round().astype(int)
    real = np.stack([prepare(val[int(i)])["x"] for i in places])
    results = {"held-out text": figures(judge, real)}
    page = ["# Samples of text", "", "The first samples of seed 0, uncut."]
    for name, prior in priors.items():
        for temperature in _TEMPERATURES:
            x = prior.sample(_COUNT, temperature=temperature)
            title = f"{name}, temperature {temperature:g}"
            results[title] = figures(judge, x)
            page += _section(title, prior, x[:_SHOWN])
        x = prior.sample(_SHOWN, prompt=_PROMPT, temperature=_TEMPERATURES[-1])
        page += _section(f'{name}, prompt "{_PROMPT}"', prior, x)
    for name, found in results.items():
        print(f"{name:<36}" + "  ".join(f"{key} {value:.3f}" for key, value in found.items()))
    files.write((json.dumps(results, indent=2) + "\n").encode(), arguments.output / "samples.json")
    files.write(("\n".join(page) + "\n").encode(), arguments.output / "samples.md")


def _section(title: str, prior: TrainedPrior, x: np.ndarray) -> list[str]:
    texts = [prior.modality.shown(raw) for raw in prior.modality.to_raw(x)]
    return ["", f"## {title}", *(line for text in texts for line in ("", "```text", text, "```"))]


if __name__ == "__main__":
    main()

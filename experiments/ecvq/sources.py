"""Entropy-constrained vector quantization of 2-D sources, beside plain VQ and the Gaussian's bound.

    python -m experiments.ecvq.sources --output=experiments/ecvq

Each codebook is trained on 2^16 points and measured on 2^16 others. The rate is the entropy of the codes
chosen, with probabilities counted on the training points. Plain VQ has 4 to 256 entries; entropy-constrained
VQ has 256 entries and lambdas from large to small; integers have a step. Distortion is the squared error a
dimension, as SNR.
"""

import argparse
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from vq_jax.quantizers import VectorQuantizer

POINTS, STEPS, BATCH = 2**16, 400, 2**13
ENTRIES = (4, 8, 16, 32, 64, 128, 256)
LAMBDAS = (0.4, 0.25, 0.15, 0.08, 0.04, 0.02, 0.01)


def uniform(rng):
    return rng.uniform(-(3**0.5), 3**0.5, (POINTS, 2))


def laplace(rng):
    return rng.laplace(0, 2**-0.5, (POINTS, 2))


def gaussian(rng):
    return rng.normal(size=(POINTS, 2))


def banana(rng):
    x = rng.normal(size=POINTS)
    return np.stack([x, 0.6 * (x**2 - 1) + 0.3 * rng.normal(size=POINTS)], axis=1)


SOURCES = {"uniform": uniform, "laplace": laplace, "gaussian": gaussian, "banana": banana}


def train(points: np.ndarray, entries: int, rate_weight: float):
    """Trains a codebook by k-means, then by moving averages of the points that choose each entry."""
    quantizer = VectorQuantizer(
        num_codes=entries, dim=2, rate_weight=rate_weight, decay=0.9, revive_below=0.0
    )
    key, z = jax.random.key(0), jnp.asarray(points, jnp.float32)
    variables = quantizer.init(key, z[:2])
    mutable = ["params", "codebook"]
    _, changed = quantizer.apply(variables, z[:BATCH], key, method="initialise", mutable=mutable)

    @jax.jit
    def step(variables, z, key):
        _, codes, _ = quantizer.apply(variables, z)
        _, changed = quantizer.apply(variables, z, codes, key, method="update", mutable=mutable)
        return {**variables, **changed}

    variables = {**variables, **changed}
    for i in range(STEPS):
        rows = jax.random.randint(jax.random.fold_in(key, i), (BATCH,), 0, POINTS)
        variables = step(variables, z[rows], key)
    return quantizer, variables


def measure(quantizer, variables, points: np.ndarray, test: np.ndarray) -> tuple[float, float]:
    """Returns bits a dimension and the SNR in dB."""
    apply = jax.jit(functools.partial(quantizer.apply, variables))
    _, seen, _ = apply(jnp.asarray(points, jnp.float32))
    z_q, codes, _ = apply(jnp.asarray(test, jnp.float32))
    counts = np.bincount(np.asarray(seen), minlength=quantizer.num_codes) + 1e-3
    bits = -np.log2(counts / counts.sum())[np.asarray(codes)].mean() / 2
    return float(bits), float(10 * np.log10(test.var() / np.square(test - z_q).mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    folder = parser.parse_args().output
    rng = np.random.default_rng(0)
    found: dict = {}
    figure, axes = plt.subplots(
        2, len(SOURCES), figsize=(4 * len(SOURCES), 8), layout="constrained"
    )
    for column, (name, source) in enumerate(SOURCES.items()):
        points, test = source(rng), source(rng)
        curves: dict = {"VQ": [], "entropy-constrained VQ": []}
        for entries in ENTRIES:
            curves["VQ"].append(measure(*train(points, entries, 0.0), points, test))
        for rate_weight in LAMBDAS:
            trained = train(points, 256, rate_weight)
            curves["entropy-constrained VQ"].append(measure(*trained, points, test))
            if rate_weight == LAMBDAS[2]:
                shown = trained
        curves["integers"] = []
        for step in (2.0, 1.5, 1.0, 0.7, 0.5, 0.35):
            codes, seen = np.rint(test / step), np.rint(points / step)
            table = {
                tuple(k): c
                for k, c in zip(*np.unique(seen, axis=0, return_counts=True), strict=True)
            }
            p = np.array([table.get(tuple(k), 0.5) for k in codes]) / POINTS
            snr = 10 * np.log10(test.var() / np.square(test - step * codes).mean())
            curves["integers"].append((float(-np.log2(p).mean() / 2), float(snr)))
        found[name] = curves
        _draw(axes[0, column], name, curves)
        _draw_cells(axes[1, column], test, *shown)
    figure.savefig(folder / "sources.png", dpi=80)
    (folder / "sources.json").write_text(json.dumps(found, indent=1) + "\n")


def _draw(axis, name: str, curves: dict) -> None:
    for label, points in curves.items():
        bits, snr = zip(*sorted(points), strict=True)
        axis.plot(bits, snr, "o-", label=label, markersize=3)
    bits = np.linspace(0.3, 3.5, 10)
    axis.plot(bits, 20 * np.log10(2) * bits, "k--", label="bound of a Gaussian")
    axis.set(title=name, xlabel="bits a dimension", ylabel="SNR, dB", xlim=(0.2, 3.8), ylim=(0, 24))
    axis.legend()


def _draw_cells(axis, test: np.ndarray, quantizer, variables) -> None:
    """Draws the cells of a codebook: entries sized by their share of the points."""
    low, high = np.percentile(test, [0.2, 99.8], axis=0)
    x, y = np.meshgrid(*(np.linspace(a, b, 400) for a, b in zip(low, high, strict=True)))
    grid = np.stack([x, y], axis=-1).astype(np.float32)
    codes = np.asarray(quantizer.apply(variables, jnp.asarray(grid))[1])
    edges = (codes[:-1, :-1] != codes[1:, :-1]) | (codes[:-1, :-1] != codes[:-1, 1:])
    axis.imshow(edges, origin="lower", cmap="Greys", alpha=0.5, aspect="auto",
                extent=(low[0], high[0], low[1], high[1]))  # fmt: skip
    book = variables["params"]["book"]["codebook"]
    size = np.asarray(variables["codebook"]["book"]["cluster_size"][0])
    used = size > 1e-3 * size.max()
    axis.scatter(*np.asarray(book)[used].T, s=200 * size[used] / size.max(), c="tab:orange")
    axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))


if __name__ == "__main__":
    main()

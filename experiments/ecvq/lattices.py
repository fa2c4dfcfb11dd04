"""What vectors gain over integers: the lattices A2, D4 and E8 with an ideal entropy code.

    python -m experiments.ecvq.lattices --output=experiments/ecvq/lattices.json

Sources of independent numbers of variance 1. A vector is divided by a step, rounded to the nearest point of the lattice,
and decoded as the mean of its cell. The rate is the entropy of the points, in bits a dimension: the probability of a cell is the
mean of the density at random places in it, times its volume. So it is not limited by how often a point occurs, and
no codebook is needed. `vectors` are drawn for each step, `places` in each cell.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

VECTORS, PLACES = 6000, 2000
RATES = (0.5, 1.0, 1.5, 2.0, 2.5)
STEPS = np.geomspace(0.4, 4.5, 28)


def nearest_z(x: np.ndarray) -> np.ndarray:
    return np.round(x)


def nearest_d(x: np.ndarray) -> np.ndarray:
    """Integers whose sum is even (Conway and Sloane 1982)."""
    near = np.round(x)
    error = x - near
    worst = np.abs(error).argmax(-1)[..., None]
    turn = np.where(np.take_along_axis(error, worst, -1) >= 0, 1.0, -1.0)
    other = near.copy()
    np.put_along_axis(other, worst, np.take_along_axis(near, worst, -1) + turn, -1)
    return np.where((near.sum(-1) % 2 == 0)[..., None], near, other)


def nearer(x: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    first = np.square(x - a).sum(-1) <= np.square(x - b).sum(-1)
    return np.where(first[..., None], a, b)


def nearest_e8(x: np.ndarray) -> np.ndarray:
    """D8 and its copy moved by 1/2."""
    return nearer(x, nearest_d(x), nearest_d(x - 0.5) + 0.5)


def nearest_a2(x: np.ndarray) -> np.ndarray:
    """Hexagons: a rectangular lattice of sides 1 and sqrt(3), and its copy moved by half of them."""
    sides = np.array([1.0, math.sqrt(3.0)])
    return nearer(x, np.round(x / sides) * sides, (np.round(x / sides - 0.5) + 0.5) * sides)


# name -> (dimension, nearest point, volume of a cell, side of a cube that is a period)
LATTICES: dict[str, tuple[int, Callable[[np.ndarray], np.ndarray], float, tuple[float, ...]]] = {
    "Z": (1, nearest_z, 1.0, (1.0,)),
    "A2": (2, nearest_a2, math.sqrt(3) / 2, (1.0, math.sqrt(3.0))),
    "D4": (4, nearest_d, 2.0, (2.0,) * 4),
    "E8": (8, nearest_e8, 1.0, (2.0,) * 8),
}


def gaussian(x: np.ndarray) -> np.ndarray:
    return -0.5 * np.square(x).sum(-1) - x.shape[-1] * 0.5 * math.log(2 * math.pi)


def laplace(x: np.ndarray) -> np.ndarray:
    """Of variance 1: a scale of sqrt(1/2)."""
    return -math.sqrt(2) * np.abs(x).sum(-1) - x.shape[-1] * 0.5 * math.log(2)


SOURCES = {
    "Gaussian": (lambda rng, shape: rng.standard_normal(shape), gaussian),
    "Laplace": (lambda rng, shape: rng.laplace(0, math.sqrt(0.5), shape), laplace),
}


def point(name: str, source: str, step: float, rng: np.random.Generator) -> tuple[float, float]:
    """Returns bits and squared error a dimension."""
    dim, nearest, volume, period = LATTICES[name]
    draw, density = SOURCES[source]
    inside = rng.uniform(size=(PLACES, dim)) * period
    inside -= nearest(inside)  # uniform in the cell of the point 0
    x = draw(rng, (VECTORS, dim))
    bits, error = np.empty(VECTORS), np.empty(VECTORS)
    for i, centre in enumerate(nearest(x / step)):
        places = step * (centre + inside)
        log_p = density(places)
        weights = np.exp(log_p - log_p.max())
        bits[i] = -(log_p.max() + math.log(weights.mean())) / math.log(2)
        decoded = (weights[:, None] * places).sum(0) / weights.sum()
        error[i] = np.square(places - decoded).sum(-1) @ weights / weights.sum()
    bits -= math.log2(volume * step**dim)
    return float(bits.mean() / dim), float(error.mean() / dim)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    output = parser.parse_args().output
    found: dict[str, dict] = {}
    for source in SOURCES:
        found[source] = {}
        for name in LATTICES:
            rng = np.random.default_rng(0)
            curve = sorted(point(name, source, step, rng) for step in STEPS)
            rates, errors = zip(*curve, strict=True)
            snr = -10 * np.log10(errors)
            found[source][name] = {str(r): round(float(np.interp(r, rates, snr)), 2) for r in RATES}
            print(source, name, found[source][name], flush=True)
        if source == "Gaussian":
            found[source]["bound"] = {str(r): round(20 * math.log10(2) * r, 2) for r in RATES}
    output.write_text(
        json.dumps({"vectors": VECTORS, "places": PLACES, "snr": found}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()

"""Fixed points on a sphere, the shortest vectors of a lattice: `lattice`.

Neither the lattice E8 nor the Leech lattice needs a codebook: a few small tables give the nearest point of
a latent and the point of a code (Conway & Sloane 1999, ch. 4).

Shape suffixes: N latents, D dimensions of a latent, C codewords or octads.
"""

import functools
import itertools
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from vq_jax.bounds import Bounds
from vq_jax.quantizers import blockwise, functions
from vq_jax.quantizers.base import Quantizer, l2_to_constant

# name -> dimensions, number of shortest vectors
LATTICES = {"e8": (8, 240), "leech": (24, 196_560)}
_PAIRS = 4 * 276  # shortest vectors of the Leech lattice of the shape (+-4, +-4, 0^22)
_OCTADS = 759 * 128  # of the shape (+-2^8, 0^16)


class LatticeQuantizer(Quantizer):
    """The nearest of the shortest vectors of a lattice, on the unit sphere.

    In 8 and 24 dimensions these are the densest arrangements of points that touch one (Conway & Sloane
    1999, ch. 14), so they cover the sphere evenly, with no codebook to learn or to collapse. See Zhao et
    al. 2025 ("Spherical Leech quantization"). The loss is a commitment loss.

    Attributes:
      lattice: "e8": 240 points in 8 dimensions. "leech": 196,560 points in 24 dimensions.
      beta: weight of the commitment loss.
    """

    lattice: str = "e8"
    beta: Annotated[float, Bounds(0)] = 0.25

    def setup(self):
        self.check_choices(lattice=tuple(LATTICES))

    @property
    def dim(self) -> int:
        return LATTICES[self.lattice][0] if self.lattice in LATTICES else 1

    @property
    def num_codes(self) -> int:
        return LATTICES[self.lattice][1] if self.lattice in LATTICES else 1

    @property
    def residual_scale(self):
        return None

    def prepare(self, z: jax.Array) -> jax.Array:
        return functions.normalise(z.astype(jnp.float32))

    def assign(self, y, *, key, scheduled, axis_name):
        del key
        rows_ND = jax.lax.stop_gradient(y).reshape(-1, self.dim)
        codes = _NEAREST[self.lattice](rows_ND).reshape(y.shape[:-1])
        entries = self.lookup(codes)
        aux = {"commitment": l2_to_constant(y, entries)}
        aux["loss"] = self.value(scheduled, "beta") * aux["commitment"]
        aux["counts"] = self.count(codes, axis_name)
        return functions.straight_through(y, entries), codes, aux

    def lookup(self, codes: jax.Array) -> jax.Array:
        return _POINT[self.lattice](codes)


# --- E8 -------------------------------------------------------------------------------------------


@functools.cache
def e8_points() -> np.ndarray:
    """The shortest vectors of E8, float32 [240, 8], of length 1."""
    points = []
    for i, j in itertools.combinations(range(8), 2):
        for a, b in itertools.product((-1.0, 1.0), repeat=2):
            point = np.zeros(8)
            point[i], point[j] = a, b
            points.append(point)
    for signs in itertools.product((-0.5, 0.5), repeat=8):
        if sum(s < 0 for s in signs) % 2 == 0:
            points.append(np.array(signs))
    return (np.stack(points) / np.sqrt(2)).astype(np.float32)


def _nearest_e8(rows_ND: jax.Array) -> jax.Array:
    return functions.nearest_codes(rows_ND, jnp.asarray(e8_points()))


def _point_e8(codes: jax.Array) -> jax.Array:
    return jnp.asarray(e8_points())[codes]


# --- the Leech lattice ------------------------------------------------------------------------------


@functools.cache
def golay_code() -> np.ndarray:
    """The words of the extended binary Golay code, bool [4096, 24].

    The generator is [I, B] (MacWilliams & Sloane 1977, ch. 2, sec. 6): B is bordered by ones, and has a
    one at (i, j) inside where j - i is no quadratic residue modulo 11.
    """
    residues = {i * i % 11 for i in range(1, 11)}
    inside = [[(j - i) % 11 not in residues for j in range(11)] for i in range(11)]
    border = np.ones((12, 12), bool)
    border[0, 0] = False
    border[1:, 1:] = inside
    generator = np.concatenate([np.eye(12, dtype=bool), border], axis=1)
    numbers = np.arange(4096)[:, None] >> np.arange(12) & 1
    return (numbers @ generator.astype(int)) % 2 == 1


@functools.cache
def _octads() -> np.ndarray:
    """The places of the ones in the words of weight 8, int32 [759, 8]."""
    words = golay_code()
    return np.stack([np.flatnonzero(w) for w in words[words.sum(1) == 8]]).astype(np.int32)


@functools.cache
def _pairs() -> np.ndarray:
    """All pairs of places, int32 [276, 2]."""
    return np.array(list(itertools.combinations(range(24), 2)), np.int32)


def _nearest_leech(rows_ND: jax.Array) -> jax.Array:
    """The codes of the nearest points of rows, int32 [N], in blocks."""
    max_rows = max(1, blockwise.MAX_SCORES // len(golay_code()))
    (blocks,), _ = blockwise.split_rows(max_rows, rows_ND)
    return blockwise.merge_rows(jax.lax.map(_nearest_leech_block, blocks), len(rows_ND))


def _nearest_leech_block(rows_ND: jax.Array) -> jax.Array:
    """Compares the best point of each of the three shapes by its inner product with a latent.

    Inner products are those of points of squared length 32.
    """
    x = rows_ND.astype(jnp.float32)
    magnitude, negative = jnp.abs(x), (x < 0).astype(jnp.int32)

    # (+-4, +-4, 0^22): the two largest magnitudes.
    pairs = jnp.asarray(_pairs())
    of_pairs = 4 * (magnitude[:, pairs[:, 0]] + magnitude[:, pairs[:, 1]])
    pair_score, pair = blockwise.max_and_argmax(of_pairs)
    places = pairs[pair]
    signs = jnp.take_along_axis(negative, places, axis=1)
    pair_code = 4 * pair + 2 * signs[:, 0] + signs[:, 1]

    # (+-2^8, 0^16) on an octad, with an even number of minus signs.
    octads = jnp.asarray(_octads())
    in_octad = jnp.asarray(_indicator(), jnp.float32)
    total = jnp.matmul(magnitude, in_octad.T, precision="highest")
    odd = jnp.matmul(negative.astype(jnp.float32), in_octad.T, precision="highest") % 2
    least = jnp.full_like(total, jnp.inf)
    for k in range(8):
        least = jnp.minimum(least, magnitude[:, octads[:, k]])
    of_octads = 2 * (total - 2 * odd * least)
    octad_score, octad = blockwise.max_and_argmax(of_octads)
    places = octads[octad]
    values = jnp.take_along_axis(magnitude, places, axis=1)
    signs = jnp.take_along_axis(negative, places, axis=1)
    turned = jnp.arange(8) == jnp.argmin(values, axis=1)[:, None]
    signs = (signs + turned * (signs.sum(1, keepdims=True) % 2)) % 2
    octad_code = _PAIRS + 128 * octad + (signs[:, 1:] << jnp.arange(7)).sum(1)

    # (-3, 1^23), with the signs at the ones of a codeword changed.
    flips = jnp.asarray(1.0 - 2.0 * golay_code(), jnp.float32)
    best = jnp.full((len(x), len(flips)), jnp.inf)
    for j in range(24):
        best = jnp.minimum(best, x[:, j, None] * flips[:, j])
    of_words = jnp.matmul(x, flips.T, precision="highest") - 4 * best
    word_score, word = blockwise.max_and_argmax(of_words)
    place = jnp.argmin(x * flips[word], axis=1)
    word_code = _PAIRS + _OCTADS + 24 * word + place

    shape = jnp.argmax(jnp.stack([pair_score, octad_score, word_score], axis=1), axis=1)
    codes = jnp.stack([pair_code, octad_code, word_code], axis=1)
    return jnp.take_along_axis(codes, shape[:, None], axis=1)[:, 0].astype(jnp.int32)


@functools.cache
def _indicator() -> np.ndarray:
    """Which places an octad has, bool [759, 24]."""
    words = golay_code()
    return words[words.sum(1) == 8]


def _point_leech(codes: jax.Array) -> jax.Array:
    """The points of codes, float32 [..., 24], of length 1."""
    flat = codes.reshape(-1)
    row = jnp.arange(len(flat))[:, None]
    zeros = jnp.zeros((len(flat), 24))

    pair = jnp.clip(flat, 0, _PAIRS - 1)
    signs = 1 - 2 * (pair[:, None] >> jnp.array([1, 0]) & 1)
    of_pair = zeros.at[row, jnp.asarray(_pairs())[pair // 4]].set(4.0 * signs)

    octad = jnp.clip(flat - _PAIRS, 0, _OCTADS - 1)
    minus = octad[:, None] >> jnp.arange(7) & 1
    minus = jnp.concatenate([minus.sum(1, keepdims=True) % 2, minus], axis=1)
    of_octad = zeros.at[row, jnp.asarray(_octads())[octad // 128]].set(2.0 * (1 - 2 * minus))

    word = jnp.clip(flat - _PAIRS - _OCTADS, 0, None)
    flips = jnp.asarray(1.0 - 2.0 * golay_code(), jnp.float32)[word // 24]
    of_word = flips * jnp.where(jnp.arange(24) == (word % 24)[:, None], -3.0, 1.0)

    points = jnp.where((flat < _PAIRS + _OCTADS)[:, None], of_octad, of_word)
    points = jnp.where((flat < _PAIRS)[:, None], of_pair, points)
    return (points / np.sqrt(32)).astype(jnp.float32).reshape(*codes.shape, 24)


_NEAREST = {"e8": _nearest_e8, "leech": _nearest_leech}
_POINT = {"e8": _point_e8, "leech": _point_leech}

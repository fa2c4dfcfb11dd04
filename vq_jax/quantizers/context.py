"""Integers given the integers around them: a network that all machines compute alike.

A code is coded given those before it. Codes come in five stages: the first dimensions at a quarter of the
positions, at the positions diagonal to these, and at the others; then the other dimensions at the even and at
the odd positions of a checkerboard (after He et al. 2021 and He et al. 2022, ELIC). One network for each
stage sees all earlier stages, so that a decoder calls five networks for a grid of any size.

All arithmetic is on integers that float32 holds exactly: weights are below 2^7, activations below 2^8, codes
below 2^9, and sums below 2^24. The order of a sum does not matter then, and neither do the number of threads,
the device and the version of JAX (`check_exact` tests the weights for it). Gradients pass the roundings
unchanged (Bengio et al. 2013).

Shape suffixes: B examples, H and W positions, D dimensions of a latent, C and F channels.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vq_jax.quantizers.functions import straight_through

SCALES = 48  # a scale s is the logistic distribution's 2^(s / 4 - 4.5)
FRACTIONS = 8  # a mean is in units of 1 / 8
QUALITIES = 15  # the networks are told -7 to 7
LARGEST = 511  # of a code, up or down
STAGES = 5
_WEIGHT, _HIDDEN, _KNOWN = 127, 255, LARGEST
_BIAS = 16  # unit of a bias: means and scales have a wide range
_EXACT = 2**24  # sums below are exact in float32


def _rounded(x: jax.Array) -> jax.Array:
    return straight_through(x, jnp.round(jax.lax.stop_gradient(x)))


def _shifted(x: jax.Array, bits: int) -> jax.Array:
    """x / 2^bits, rounded: exact, because a float is multiplied by a power of two."""
    x = x * 2.0**-bits
    return straight_through(x, jnp.floor(jax.lax.stop_gradient(x) + 0.5))


def _weight_bits(fan_in: int) -> int:
    """Weights are integers over 2^bits; the largest is then some 4 to 8 standard deviations at the start."""
    return int(np.log2(24 * fan_in**0.5))


class IntegerConv(nn.Module):
    """A convolution of integers whose weights are rounded to integers.

    Attributes:
      features: number of output channels.
      size: of the kernel in height and width.
      gain: log2 of the kernel's unit: the output is 2^gain kernel * x + _BIAS bias, rounded.
      zeros: whether the kernel starts at 0.
      bias: of every output at the start.
    """

    features: int
    size: int
    gain: int = 0
    zeros: bool = False
    bias: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        k, channels = self.size, x.shape[-1]
        fan_in = k * k * channels
        init = nn.initializers.zeros if self.zeros else nn.initializers.normal(fan_in**-0.5)
        kernel = self.param("kernel", init, (k, k, channels, self.features))
        bias = self.param("bias", nn.initializers.constant(self.bias / _BIAS), (self.features,))
        bits = _weight_bits(fan_in)
        weights = _rounded(jnp.clip(kernel * 2.0**bits, -_WEIGHT, _WEIGHT))
        # One product of matrices for each place of the kernel: a fast algorithm for convolutions could
        # compute with fractions.
        h, w = x.shape[1:3]
        padded = jnp.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
        total: Any = 0.0
        for i in range(k):
            for j in range(k):
                part = padded[:, i : i + h, j : j + w]
                total += jnp.matmul(part, weights[i, j], precision="highest")
        shift = bits - self.gain
        return _shifted(total + _rounded(bias * (_BIAS * 2.0**shift)), shift)


class Stage(nn.Module):
    """Means and scales of some dimensions, from the codes known: all integers.

    Attributes:
      features: number of these dimensions.
      width: of the hidden layers.
      size: of the first kernel.
      linear: whether a linear prediction of the mean from the codes known is added.
    """

    features: int
    width: int
    size: int
    linear: bool

    @nn.compact
    def __call__(
        self, known_BHWC: jax.Array, quality_BHW1: jax.Array, inside_HW1: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        signed = jnp.clip(known_BHWC, -_WEIGHT, _WEIGHT)
        x = jnp.concatenate([signed, jnp.abs(signed), quality_BHW1], axis=-1)
        h = jnp.clip(IntegerConv(self.width, self.size, 4, name="conv_0")(x), 0, _HIDDEN)
        h = h if inside_HW1 is None else h * inside_HW1
        size = 3 if self.size > 1 else 1
        h = jnp.clip(IntegerConv(self.width, size, name="conv_1")(h), 0, _HIDDEN)
        mean = IntegerConv(self.features, 1, -1, name="mean")(h)
        scale = IntegerConv(self.features, 1, -1, bias=18.0, name="scale")(h)
        if self.linear:
            mean += IntegerConv(self.features, 5, 3, zeros=True, name="linear")(known_BHWC)
        limit = FRACTIONS * LARGEST
        return jnp.clip(mean, -limit, limit), jnp.clip(scale, 0, SCALES - 1)


class Context(nn.Module):
    """Means and scales of all codes of a grid, each given those of earlier stages.

    Attributes:
      dim: D.
      first: number of dimensions that the first three stages code.
      width: of the networks.
    """

    dim: int
    first: int
    width: int

    def setup(self):
        rest = self.dim - self.first
        small, large = self.width // 2, self.width
        self.stages = [
            Stage(self.first, small, 1, False),
            Stage(self.first, small, 5, True),
            Stage(self.first, small, 5, True),
            Stage(rest, large, 3, False),
            Stage(rest, large, 3, False),
        ]

    def stage(
        self,
        stage: int,
        codes_BHWD: jax.Array,
        quality_B: jax.Array,
        inside_HW: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Computes means and scales of one stage's dimensions at all positions.

        Args:
          stage: its number.
          codes_BHWD: float32 integers in [-LARGEST, LARGEST]; those of this stage and later ones are not used.
          quality_B: float32 integers in [-7, 7].
          inside_HW: bool, False for positions beyond the grid, whose codes are 0; None is all True. Results
            inside are those of the grid alone.

        Returns:
          float32 integers: means in units of 1 / 8, and scales in [0, SCALES); [B, H, W, dims of the stage].
        """
        b, h, w, _ = codes_BHWD.shape
        quality_BHW1 = jnp.broadcast_to(quality_B[:, None, None, None], (b, h, w, 1))
        inside = None if inside_HW is None else inside_HW[..., None].astype(jnp.float32)
        if inside is not None:
            quality_BHW1 *= inside
        known = codes_BHWD[..., : self.first if stage < 4 else self.dim]
        if stage == 0:
            known = known[..., :0]
        elif stage < 3:
            known *= jnp.asarray(seen(h, w, stage), jnp.float32)[..., None]
        elif stage == 4:
            rest = (
                codes_BHWD[..., self.first :] * jnp.asarray(places(h, w, 3), jnp.float32)[..., None]
            )
            known = jnp.concatenate([known[..., : self.first], rest], axis=-1)
        return self.stages[stage](known, quality_BHW1, inside)

    def __call__(self, codes_BHWD: jax.Array, quality_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Computes means and scales of all codes, each given those of earlier stages; see `stage`."""
        h, w = codes_BHWD.shape[1:3]
        found: list[Any] = []
        for stages in (range(3), range(3, STAGES)):
            part: Any = None
            for stage in stages:
                now = self.stage(stage, codes_BHWD, quality_B)
                here = jnp.asarray(places(h, w, stage))[..., None]
                part = (
                    now
                    if part is None
                    else [jnp.where(here, a, b) for a, b in zip(now, part, strict=True)]
                )
            found.append(part)
        mean, scale = (jnp.concatenate(parts, axis=-1) for parts in zip(*found, strict=True))
        return mean, scale


def places(h: int, w: int, stage: int) -> np.ndarray:
    """Returns the positions whose codes a stage codes, bool [H, W]."""
    row, column = np.indices((h, w)) % 2
    if stage == 0:
        return (row == 0) & (column == 0)
    if stage == 1:
        return (row == 1) & (column == 1)
    return (row == column) == (stage == 3)


def seen(h: int, w: int, stage: int) -> np.ndarray:
    """Returns the positions that were coded before stage 1 or 2, bool [H, W]."""
    return np.any([places(h, w, earlier) for earlier in range(stage)], axis=0)


def bits(y: jax.Array, mean: jax.Array, scale: jax.Array) -> jax.Array:
    """Computes -log2 of the probability of [y - 1/2, y + 1/2] under a logistic distribution.

    Args:
      y: float32, integers or values between them.
      mean, scale: of `Context`.

    Returns:
      float32, with gradients for all three.
    """
    s = jnp.exp2(scale / 4 - 4.5)
    # By symmetry, both values are on the side where the sigmoid is small, and their difference accurate.
    distance = -jnp.abs(y - mean / FRACTIONS)
    p = jax.nn.sigmoid((distance + 0.5) / s) - jax.nn.sigmoid((distance - 0.5) / s)
    return -jnp.log2(jnp.maximum(p, 2.0**-20))


def check_exact(params: Mapping[str, Any]) -> None:
    """Checks that no sum can leave the integers that float32 holds exactly.

    Args:
      params: of a `Context`, nested dicts.

    Raises:
      ValueError: a weight is too large.
    """
    for name, tree in params.items():
        if "kernel" not in tree:
            check_exact(tree)
            continue
        kernel, bias = (np.asarray(tree[k], np.float64) for k in ("kernel", "bias"))
        power = 2.0 ** _weight_bits(int(np.prod(kernel.shape[:3])))
        largest = np.abs(np.clip(np.round(kernel * power), -_WEIGHT, _WEIGHT)).sum((0, 1, 2)).max()
        known = {"linear": _KNOWN, "conv_0": _WEIGHT}.get(name, _HIDDEN)
        if not largest * known + 2 * _BIAS * power * np.abs(bias).max() < _EXACT:  # NaN, too
            raise ValueError(
                f"the layer {name} of the entropy model has weights that are too large or not finite"
            )

"""The networks of `quantizers.context` in NumPy's 64-bit integers."""

import math

import numpy as np


def bits_of(fan_in):
    return int(math.log2(24 * math.sqrt(fan_in)))


def shift(x, bits):
    """x / 2^bits, rounded to the nearest integer, halves up; bits may be negative."""
    return x << -bits if bits < 0 else (x + ((1 << bits) >> 1)) >> bits


def layer(params, x, gain=0):
    """A layer on integers int64 [B, H, W, C]."""
    kernel = np.asarray(params["kernel"], np.float64)
    size, _, channels, _ = kernel.shape
    bits = bits_of(size * size * channels)
    weights = np.clip(np.rint(kernel * 2.0**bits), -127, 127).astype(np.int64)
    # Weights are clipped before they are rounded: the same, because 127 is an integer.
    bias = np.rint(np.asarray(params["bias"], np.float64) * 16 * 2.0 ** (bits - gain)).astype(
        np.int64
    )
    h, w = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    total = sum(
        padded[:, i : i + h, j : j + w] @ weights[i, j] for i in range(size) for j in range(size)
    )
    return shift(total + bias, bits - gain)


def stage(params, known, quality):
    """Means in eighths and scales, int64, from codes known and qualities -7 to 7."""
    b, h, w, _ = known.shape
    signed = np.clip(known, -127, 127)
    plane = np.broadcast_to(quality[:, None, None, None], (b, h, w, 1))
    x = np.concatenate([signed, np.abs(signed), plane], axis=-1)
    x = np.clip(layer(params["conv_0"], x, 4), 0, 255)
    x = np.clip(layer(params["conv_1"], x), 0, 255)
    mean, scale = layer(params["mean"], x, -1), layer(params["scale"], x, -1)
    if "linear" in params:
        mean = mean + layer(params["linear"], known, 3)
    return np.clip(mean, -8 * 511, 8 * 511), np.clip(scale, 0, 47)


def predict(params, y, quality, first):
    """Means and scales of all codes int64 [B, H, W, D], each given those of earlier stages."""
    row, column = np.indices(y.shape[1:3]) % 2
    places = [(row == 0) & (column == 0), (row == 1) & (column == 1), row != column]
    places += [row == column, row != column]
    mean, scale = np.zeros_like(y), np.zeros_like(y)
    known = np.zeros_like(y)
    for i, here in enumerate(places):
        dims = slice(0, first) if i < 3 else slice(first, None)
        seen = (known[..., :0], known[..., :first], known[..., :first], known[..., :first], known)[
            i
        ]
        m, s = stage(params[f"stages_{i}"], seen, quality)
        mean[:, here, dims], scale[:, here, dims] = m[:, here], s[:, here]
        known[:, here, dims] = y[:, here, dims]
    return mean, scale


def bits(y, mean, scale):
    """-log2 of the probability of [y - 1/2, y + 1/2] under a logistic distribution."""
    s = 2.0 ** (scale / 4 - 4.5)
    below, above = ((y - mean / 8 + edge) / s for edge in (-0.5, 0.5))
    # tanh(a) - tanh(b) = sinh(a - b) / (cosh(a) cosh(b)) has no cancellation.
    a, b = above / 2, below / 2
    log = np.log(np.sinh(a - b)) - np.logaddexp(a, -a) - np.logaddexp(b, -b) + np.log(2)
    return np.minimum(-log / np.log(2), 20)

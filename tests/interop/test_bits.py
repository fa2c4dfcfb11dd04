"""Params in 16 and 8 bits."""

import numpy as np
import pytest

from vq_jax.errors import UserError
from vq_jax.interop.bits import narrow, widen


def arrays():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 8, 16)).astype(np.float32) * np.logspace(-6, 3, 16)
    kernel[..., 3] = 0
    return {
        "params/conv/kernel": kernel.astype(np.float32),
        "params/conv/bias": rng.normal(size=16).astype(np.float32),
        "params/empty": np.zeros((0, 4), np.float32),
        "params/table": np.arange(12).reshape(3, 4),
        "codebook/counts": rng.normal(size=(4, 4)).astype(np.float32),
    }


def split(stored):
    scales = {n: a for n, a in stored.items() if n.startswith("scales/")}
    return {n: a for n, a in stored.items() if n not in scales}, scales


@pytest.mark.parametrize("bits, error", [(32, 0), (16, 2**-11), (8, 0.5 / 127)])
def test_the_error_is_a_share_of_the_largest_value_of_each_channel(bits, error):
    original = arrays()
    back = widen(*split(narrow(original, bits)))
    assert back.keys() == original.keys()
    for name, x in original.items():
        assert back[name].dtype == x.dtype and back[name].shape == x.shape
        if name != "params/conv/kernel":
            np.testing.assert_allclose(back[name], x, rtol=2**-11 if bits == 16 else 0)
    x = original["params/conv/kernel"]
    largest = np.abs(x).max(axis=(0, 1, 2))
    worst = np.abs(back["params/conv/kernel"] - x).max(axis=(0, 1, 2))
    smallest = 2**-24 if bits == 16 else 0  # of the numbers that 16 bits can tell apart
    assert (worst <= largest * error * 1.001 + smallest).all()


def test_narrowing_twice_changes_nothing_more():
    once = widen(*split(narrow(arrays(), 8)))
    twice = widen(*split(narrow(once, 8)))
    for name, x in once.items():
        np.testing.assert_array_equal(twice[name], x)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
@pytest.mark.parametrize("bits", [16, 8])
def test_values_that_do_not_fit_are_refused(bits, value):
    with pytest.raises(UserError, match=f"params/x has values that {bits} bits cannot hold"):
        narrow({"params/x": np.array([[value]], np.float32)}, bits)


@pytest.mark.parametrize(
    "scale", [None, np.ones(3, np.float32), np.ones((1, 4), np.float32), np.ones(4, np.int32)]
)
def test_scales_that_do_not_fit_are_refused(scale):
    scales = {} if scale is None else {"scales/params/x": scale}
    with pytest.raises(UserError, match="params/x has 8 bits and no scale"):
        widen({"params/x": np.zeros((2, 4), np.int8)}, scales)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_scales_that_are_no_numbers_are_refused(value):
    scales = {"scales/params/x": np.full(4, value, np.float32)}
    with pytest.raises(UserError, match="no numbers, or too large"):
        widen({"params/x": np.ones((2, 4), np.int8)}, scales)

"""Codes to bytes and back, whatever they are; and files that are not what they should be."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import bits

from vq_jax import bitstream
from vq_jax.bitstream import ABOUT, Decoder, Encoder, Header
from vq_jax.errors import UserError

HEADER = Header(b"abcd", "static", (480, 70_000), 3, b"1234")


@st.composite
def messages(draw):
    """Codes and the weights they are coded by: a table of all, or one of each."""
    symbols = draw(st.sampled_from([1, 2, 3, 17, 512, 5000]))
    count = draw(st.integers(0, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    # From flat to one symbol that has nearly all.
    weights = np.floor(np.exp(rng.normal(0, draw(st.floats(0, 5)), (count, symbols)))) + 1
    return rng.integers(0, symbols, count), weights, draw(st.booleans())


@settings(max_examples=300, deadline=None)
@given(st.lists(messages(), min_size=1, max_size=3))
def test_what_was_put_is_taken_in_order(parts):
    encoder = Encoder()
    for codes, weights, each in parts:
        if each:
            encoder.put_each(codes, weights)
        elif len(codes):
            encoder.put(codes, bitstream.table(weights[0]))
    decoder = Decoder(encoder.finish())
    for codes, weights, each in parts:
        if each:
            np.testing.assert_array_equal(decoder.take_each(weights), codes)
        elif len(codes):
            taken = decoder.take(len(codes), bitstream.table(weights[0]))
            np.testing.assert_array_equal(taken, codes)


@pytest.mark.parametrize("symbols", [2, 300, 512, 2**18])
def test_a_fixed_width_is_the_logarithm_of_the_symbols(rng, symbols):
    codes, encoder = rng.integers(0, symbols, 20_000), Encoder()
    encoder.put(codes, bitstream.uniform(symbols))
    payload = encoder.finish()
    assert 8 * len(payload) == pytest.approx(20_000 * np.log2(symbols), rel=0.002)
    taken = Decoder(payload).take(20_000, bitstream.uniform(symbols))
    np.testing.assert_array_equal(taken, codes)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 5000), st.floats(0, 3), st.integers(0, 2**32))
def test_a_payload_is_within_one_percent_of_the_cross_entropy(symbols, spread, seed):
    rng = np.random.default_rng(seed)
    weights = np.floor(1000 * np.exp(rng.normal(0, spread, symbols))) + 1
    codes, encoder = rng.choice(symbols, 5000, p=weights / weights.sum()), Encoder()
    encoder.put(codes, bitstream.table(weights))
    assert 8 * len(encoder.finish()) <= 1.01 * bits(codes, weights) + 8


def test_a_short_payload_has_no_more_than_a_byte_too_many(rng):
    """Of words of 32 bits, as the coder has them, it would be four on average."""
    extra = []
    for _ in range(300):
        weights = rng.integers(1, 1000, 512)
        codes = rng.choice(512, 64, p=weights / weights.sum())
        encoder = Encoder()
        encoder.put(codes, bitstream.table(weights))
        extra.append(8 * len(encoder.finish()) - bits(codes, weights))
    assert max(extra) < 17 and np.mean(extra) < 6


def test_many_codes_that_cost_nothing_still_cost_a_byte_for_256():
    free = 2**14
    for count, least in ((1, 0), (free, 0), (free + 1, 1), (free + 256, 1), (2 * free, 64)):
        encoder = Encoder()
        encoder.put(np.zeros(count, np.int32), None)
        payload = encoder.finish()
        assert len(payload) == bitstream.least_bytes(count) == least
        bitstream.check_size(count, payload)
        with pytest.raises(UserError, match="more than"):
            bitstream.check_size(free + 256 * len(payload) + 1, payload)


def test_a_file_comes_back_and_is_as_the_module_says():
    data = bitstream.pack(HEADER, b"payload")
    assert bitstream.unpack(data) == (HEADER, b"payload")
    assert data[:9] == b"VQZ\1abcd" + bytes([1 | 2 << 4])
    # 480 is 3 * 128 + 96; 70,000 is 4 * 128^2 + 34 * 128 + 112
    assert data[9:15] == bytes([96 | 128, 3, 112 | 128, 34 | 128, 4, 3])
    assert data[15:-4] == b"1234payload"
    assert struct.unpack("<I", data[-4:])[0] == zlib.crc32(data[:-4])


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(list(ABOUT)),
    st.lists(st.integers(1, 2**31 - 1), min_size=1, max_size=4),
    st.integers(1, 300),
    st.binary(max_size=40),
)
def test_any_header_comes_back(entropy, shape, levels, payload):
    header = Header(b"\0\1\2\3", entropy, tuple(shape), levels, b"x" * ABOUT[entropy])
    assert bitstream.unpack(bitstream.pack(header, payload)) == (header, payload)


def with_crc(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


def test_what_is_wrong_with_a_file_is_said():
    data = bitstream.pack(HEADER, b"payload")
    for size in range(len(data)):
        with pytest.raises(UserError, match="cut short|not a .vqz"):
            bitstream.unpack(data[:size])
    with pytest.raises(UserError, match=r"not a \.vqz file"):
        bitstream.unpack(b"\x89PNG" + data)
    with pytest.raises(UserError, match="version 2 .* update vq_jax"):
        bitstream.unpack(with_crc(data[:3] + b"\2" + data[4:-4]))
    for place in range(4, len(data)):
        with pytest.raises(UserError, match="altered"):
            bitstream.unpack(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
    for body in (
        data[:3] + b"\0" + data[4:-4],  # a version that never was
        data[:8] + b"\x27" + data[9:-4],  # an entropy model that there is not
        data[:8] + b"\x01" + data[9:-4],  # no sizes
        data[:9] + b"\xff" * 12,  # a size without end
        data[:9] + b"\0" * 12,  # a size of 0
        data[:9] + b"\x90\0\x90\0\x90\0" + data[15:-4],  # longer than it need be
        data[:15],  # nothing after the sizes
    ):
        with pytest.raises(UserError, match="makes no sense"):
            bitstream.unpack(with_crc(body))


def test_a_payload_that_no_codes_give_is_refused():
    decoder = Decoder(b"\xff" * 8)
    with pytest.raises(UserError, match="altered"):
        decoder.take(1000, bitstream.table(np.arange(1, 100)))

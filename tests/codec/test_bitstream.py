"""The range coder and the file format: round trips, sizes of payloads, and invalid files."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import bits

from vq_jax.codec import bitstream
from vq_jax.codec.bitstream import METADATA, Decoder, Encoder, Header
from vq_jax.errors import UserError

HEADER = Header(b"abcd", "static", (480, 70_000), 3, b"1234")


@st.composite
def messages(draw):
    """Draws codes [N], weights [N, K], and whether each code uses its own row of weights."""
    symbols = draw(st.sampled_from([1, 2, 3, 17, 512, 5000]))
    count = draw(st.integers(0, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    # From equal weights to one symbol with nearly all of the weight.
    weights = np.floor(np.exp(rng.normal(0, draw(st.floats(0, 5)), (count, symbols)))) + 1
    return rng.integers(0, symbols, count), weights, draw(st.booleans())


@settings(max_examples=300, deadline=None)
@given(st.lists(messages(), min_size=1, max_size=3))
def test_decoder_returns_the_codes_in_the_order_they_were_put(parts):
    encoder = Encoder()
    for codes, weights, own_weights in parts:
        if own_weights:
            encoder.put_each(codes, weights)
        elif len(codes):
            encoder.put(codes, bitstream.table(weights[0]))
    decoder = Decoder(encoder.finish())
    for codes, weights, own_weights in parts:
        if own_weights:
            np.testing.assert_array_equal(decoder.take_each(weights), codes)
        elif len(codes):
            decoded = decoder.take(len(codes), bitstream.table(weights[0]))
            np.testing.assert_array_equal(decoded, codes)


@pytest.mark.parametrize("symbols", [2, 300, 512, 2**18])
def test_uniform_codes_cost_the_logarithm_of_the_number_of_symbols(rng, symbols):
    codes, encoder = rng.integers(0, symbols, 20_000), Encoder()
    encoder.put(codes, bitstream.uniform(symbols))
    payload = encoder.finish()
    assert 8 * len(payload) == pytest.approx(20_000 * np.log2(symbols), rel=0.002)
    decoded = Decoder(payload).take(20_000, bitstream.uniform(symbols))
    np.testing.assert_array_equal(decoded, codes)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 5000), st.floats(0, 3), st.integers(0, 2**32))
def test_payload_size_is_within_one_percent_of_the_cross_entropy(symbols, spread, seed):
    rng = np.random.default_rng(seed)
    weights = np.floor(1000 * np.exp(rng.normal(0, spread, symbols))) + 1
    codes, encoder = rng.choice(symbols, 5000, p=weights / weights.sum()), Encoder()
    encoder.put(codes, bitstream.table(weights))
    assert 8 * len(encoder.finish()) <= 1.01 * bits(codes, weights) + 8


def test_short_payloads_have_little_overhead(rng):
    """If its last word of 32 bits were not cut, it would be four bytes too long on average."""
    extra = []
    for _ in range(300):
        weights = rng.integers(1, 1000, 512)
        codes = rng.choice(512, 64, p=weights / weights.sum())
        encoder = Encoder()
        encoder.put(codes, bitstream.table(weights))
        extra.append(8 * len(encoder.finish()) - bits(codes, weights))
    assert max(extra) < 17 and np.mean(extra) < 6


def test_payload_has_one_byte_for_every_256_codes_beyond_the_free_ones():
    free = 2**14
    for count, min_bytes in ((1, 0), (free, 0), (free + 1, 1), (free + 256, 1), (2 * free, 64)):
        encoder = Encoder()
        encoder.put(np.zeros(count, np.int32), None)
        payload = encoder.finish()
        assert len(payload) == bitstream.least_bytes(count) == min_bytes
        bitstream.check_size(count, payload)
        with pytest.raises(UserError, match="more than"):
            bitstream.check_size(free + 256 * len(payload) + 1, payload)


def test_file_survives_a_round_trip_and_has_the_documented_layout():
    data = bitstream.pack(HEADER, b"payload")
    assert bitstream.unpack(data) == (HEADER, b"payload")
    assert data[:9] == b"VQZ\1abcd" + bytes([1 | 2 << 4])
    # 480 is 3 * 128 + 96; 70,000 is 4 * 128^2 + 34 * 128 + 112
    assert data[9:15] == bytes([96 | 128, 3, 112 | 128, 34 | 128, 4, 3])
    assert data[15:-4] == b"1234payload"
    assert struct.unpack("<I", data[-4:])[0] == zlib.crc32(data[:-4])


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(list(METADATA)),
    st.lists(st.integers(1, 2**31 - 1), min_size=1, max_size=4),
    st.integers(1, 300),
    st.binary(max_size=40),
)
def test_headers_survive_a_round_trip(entropy, shape, levels, payload):
    header = Header(b"\0\1\2\3", entropy, tuple(shape), levels, b"x" * METADATA[entropy])
    assert bitstream.unpack(bitstream.pack(header, payload)) == (header, payload)


def with_crc(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


def test_invalid_files_are_refused_with_the_reason():
    data = bitstream.pack(HEADER, b"payload")
    for size in range(len(data)):
        with pytest.raises(UserError, match="truncated|not a .vqz"):
            bitstream.unpack(data[:size])
    with pytest.raises(UserError, match=r"not a \.vqz file"):
        bitstream.unpack(b"\x89PNG" + data)
    with pytest.raises(UserError, match="version 4 .* update vq_jax"):
        bitstream.unpack(with_crc(data[:3] + b"\4" + data[4:-4]))
    for position in range(4, len(data)):
        with pytest.raises(UserError, match="altered"):
            bitstream.unpack(data[:position] + bytes([data[position] ^ 16]) + data[position + 1 :])
    for body in (
        data[:3] + b"\0" + data[4:-4],  # version 0, which does not exist
        data[:8] + b"\x27" + data[9:-4],  # an unknown entropy model
        data[:8] + b"\x01" + data[9:-4],  # no sizes
        data[:9] + b"\xff" * 12,  # a size whose varint does not end
        data[:9] + b"\0" * 12,  # a size of 0
        data[:9] + b"\x90\0\x90\0\x90\0" + data[15:-4],  # varints longer than necessary
        data[:15],  # nothing after the sizes
    ):
        with pytest.raises(UserError, match="header is not valid"):
            bitstream.unpack(with_crc(body))


def test_payload_that_no_codes_produce_is_refused():
    decoder = Decoder(b"\xff" * 8)
    with pytest.raises(UserError, match="altered"):
        decoder.take(1000, bitstream.table(np.arange(1, 100)))

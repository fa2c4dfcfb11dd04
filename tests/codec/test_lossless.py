"""Texts without loss, with random params: the tested properties hold for any params."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import bits as bits_of
from small import make_prior, make_text_tokenizer, make_tokenizer

from vq_jax.codec import Codec, bitstream, lossless
from vq_jax.codec.lossless import ByteModel
from vq_jax.codec.text_tiler import TextTiler
from vq_jax.config import base
from vq_jax.errors import UserError
from vq_jax.runs import BUILT_IN

KINDS = ("parallel", "sequential", "levels", "causal", "masked", "random_order", "bytes")
LENGTH = 32


def make_codec(kind):
    """Returns a codec with counts, and with a prior for the names of priors."""
    if kind == "bytes":
        data = base("text_conv").data
        data.length = LENGTH
        tokenizer = BUILT_IN["bytes"](data)
    else:
        tokenizer = make_text_tokenizer(
            2 if kind in ("sequential", "causal") else 0,
            quantizer="residual/vq" if kind == "levels" else "vq",
        )
    prior = None
    if kind in ("causal", "masked", "random_order", "bytes"):
        name = "causal" if kind == "bytes" else kind
        prior = make_prior(tokenizer, name, ngrams=(2, 3) if name == "causal" else ())
    shape = (tokenizer.codes.books, tokenizer.codes.num_codes)
    counts = np.random.default_rng(0).integers(0, 1000, shape) ** 2
    return Codec(tokenizer, counts, prior)


@pytest.fixture(scope="module")
def codecs():
    return {kind: make_codec(kind) for kind in KINDS}


def text_of(data):
    return np.frombuffer(data, np.uint8)


CASES = {
    "empty": b"",
    "one byte": b"a",
    "less than a code": b"In",
    "cut in the middle of a character": "Æther and ÿ".encode()[:-1],
    "one window": bytes(range(LENGTH)),
    "binary": np.random.default_rng(1).bytes(3001),
    "zeros": bytes(5000),
    "a text": b"And God said, Let there be light: and there was light. " * 20,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_comes_back_and_no_input_grows(codecs, kind):
    codec = codecs[kind]
    for name, data in CASES.items():
        packed = codec.compress(text_of(data))
        assert codec.decompress(packed).tobytes() == data, name
        assert len(packed) <= 1.01 * len(data) + 32, name
        lossy = codec.decompress(codec.compress(text_of(data), lossy=True))
        assert lossy.dtype == np.uint8 and len(lossy) == len(data)


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    parts=st.lists(st.tuples(st.booleans(), st.integers(0, 200)), max_size=6),
    seed=st.integers(0, 2**32),
)
def test_mixtures_of_what_models_know_and_noise_come_back(codecs, kind, parts, seed):
    codec, rng = codecs[kind], np.random.default_rng(seed)
    spec = codec.tokenizer.codes
    drawn = codec.tokenizer.decode(rng.integers(0, spec.num_codes, (8, *spec.shape)))
    known = codec.tokenizer.modality.to_raw(drawn).tobytes()
    data = b"".join(known[:n] if likely else rng.bytes(n) for likely, n in parts)
    assert codec.decompress(codec.compress(text_of(data))).tobytes() == data


def test_the_bits_are_those_of_the_weights(codecs):
    """Codes take log2(sum / weight) bits each."""
    codec = codecs["causal"]
    x = np.random.default_rng(0).integers(0, 256, (4, LENGTH))
    codes = np.asarray(codec.tokenizer.encode(x))
    everything = np.ones(codes.shape, bool)
    visits, bits_B = lossless._recorded(codec.models["prior"].visit, codes, everything)
    expected = sum(bits_of(codes[where], w) for where, w in visits)
    assert bits_B.sum() == pytest.approx(expected, rel=1e-6)
    encoder = bitstream.Encoder()
    lossless._write(encoder, visits, codes, np.ones(4, bool))
    assert len(encoder.finish()) * 8 == pytest.approx(expected, abs=16)


def test_batches_are_smaller_for_large_codebooks():
    small, large = make_text_tokenizer(), make_text_tokenizer()
    large.codes = dataclasses.replace(large.codes, num_codes=2**18)
    sizes = [lossless.Lossless(TextTiler(one), {})._most for one in (small, large)]
    assert sizes == [2**14 // LENGTH, 2**22 // (8 * 2**18)]


def test_bytes_of_a_row_do_not_depend_on_the_other_rows():
    """Reading decodes only the rows that need it."""
    for kind in ("parallel", "sequential"):
        tokenizer = make_codec(kind).tokenizer
        model, rng = ByteModel(tokenizer), np.random.default_rng(0)
        codes = rng.integers(0, 32, (4, LENGTH // 4), np.int32)
        found = {}

        def keep(where, logits, found=found):
            for row, place, one in zip(*where, logits, strict=True):
                found.setdefault((row, place), []).append(one)
            return (where[0] + where[1]) % 256

        model.visit(codes, model.logits(codes), np.ones((4, LENGTH), bool), keep)
        codes[[0, 1, 3]] = 0
        inside = np.zeros((4, LENGTH), bool)
        inside[2] = True
        model.visit(codes, model.logits(codes), inside, keep)
        for place in range(LENGTH):
            a, b = found[2, place]
            np.testing.assert_array_equal(a, b)


def test_files_of_other_models_are_refused(codecs):
    text = text_of(CASES["a text"])
    packed = codecs["causal"].compress(text)
    with pytest.raises(UserError, match="another model"):
        codecs["parallel"].decompress(packed)
    image = Codec(make_tokenizer())
    with pytest.raises(UserError, match="another model"):
        image.decompress(packed)
    with pytest.raises(UserError, match="another model"):
        codecs["causal"].decompress(image.compress(np.zeros((8, 8, 3), np.uint8)))
    with pytest.raises(UserError, match="give lossy"):
        make_codec("levels").compress(text, quality=1)
    with pytest.raises(ValueError, match="make it bytes, or uint8"):
        codecs["causal"].compress(text.astype(np.int32))

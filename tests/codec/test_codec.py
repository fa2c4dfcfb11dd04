"""The codec in Python, with random params: the tested properties hold for any params."""

import resource
import struct
import time
import zlib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import mutated, number
from small import bits as bits_of
from small import make_prior, make_tokenizer

from vq_jax.codec import Codec, bitstream
from vq_jax.codec import counts as code_counts
from vq_jax.codec.bitstream import Decoder, Encoder
from vq_jax.codec.entropy import PriorModel, weights
from vq_jax.errors import UserError

PRIORS = ("causal", "masked", "random_order")


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def counts():
    return np.random.default_rng(0).integers(0, 1000, (1, 32)) ** 2


@pytest.fixture(scope="module")
def models(tokenizer):
    return {name: PriorModel(make_prior(tokenizer, name)) for name in PRIORS}


def image(rng, height=30, width=41):
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def encode(model, codes):
    """Returns the metadata and the payload of codes under an entropy model."""
    encoder = Encoder()
    metadata = model.put(encoder, codes)
    return metadata, encoder.finish()


@pytest.mark.parametrize("entropy", ["fixed", "static", *PRIORS])
def test_codes_survive_a_round_trip(tokenizer, counts, rng, entropy):
    prior = make_prior(tokenizer, entropy) if entropy in PRIORS else None
    codec, name = Codec(tokenizer, counts, prior), "prior" if prior else entropy
    for x in (image(rng), image(rng, 16, 16), image(rng, 1, 3), image(rng, 33, 8)):
        data = codec.compress(x, entropy=name)
        codes, shape = codec.read(data)
        assert shape == x.shape[:2]
        np.testing.assert_array_equal(codes, codec.tiler.encode([x])[0])
        result = codec.decompress(data)
        assert result.dtype == np.uint8 and result.shape == x.shape
        (expected,) = codec.tiler.decode([codes], [shape])
        np.testing.assert_array_equal(result, expected)


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(PRIORS),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 2**32),
)
def test_prior_encodes_grids_of_any_shape(models, name, height, width, seed):
    codes = np.random.default_rng(seed).integers(0, 32, (height, width, 1), np.int32)
    metadata, payload = encode(models[name], codes)
    decoded = models[name].take(Decoder(payload), metadata, (height, width), 1)
    np.testing.assert_array_equal(decoded, codes)


@pytest.mark.parametrize("name", PRIORS)
def test_prior_encodes_several_codes_per_position(rng, name):
    tokenizer = make_tokenizer("residual")
    model = PriorModel(make_prior(tokenizer, name))
    codes = rng.integers(0, tokenizer.codes.num_codes, (6, 5, 2), np.int32)
    metadata, payload = encode(model, codes)
    np.testing.assert_array_equal(model.take(Decoder(payload), metadata, (6, 5), 2), codes)


@pytest.mark.parametrize("name", ["causal", "random_order"])
def test_payload_size_is_within_one_percent_of_the_priors_cross_entropy(tokenizer, rng, name):
    prior = make_prior(tokenizer, name)
    # Samples of the prior itself take few bits.
    codes = prior.sample_codes(64, seed=1)
    bits = -prior.log_probability(codes).sum() / np.log(2)
    grid = np.concatenate(list(codes.reshape(64, *tokenizer.codes.shape)), axis=0)[..., None]
    _, payload = encode(PriorModel(prior), grid)
    assert bits < 0.97 * codes.size * 5
    assert 8 * len(payload) == pytest.approx(bits, rel=0.01)


def test_masked_prior_visits_every_code_once(models, rng):
    """The size of the payload is the cost of the codes under the weights of their groups."""
    codes, bits, seen = rng.integers(0, 32, (1, 16)), 0.0, []

    def count_bits(where, logits):
        nonlocal bits
        bits += bits_of(codes[where], weights(logits))
        seen.extend(zip(*where, strict=True))
        return codes[where]

    models["masked"]._visit_tokens(np.ones((1, 16), bool), count_bits)
    assert len(seen) == len(set(seen)) == 16
    _, payload = encode(models["masked"], codes.reshape(4, 4, 1).astype(np.int32))
    assert 0 <= 8 * len(payload) - bits < 9


def test_weights_are_positive_integers_close_to_the_probabilities(rng):
    logits = rng.normal(0, 8, (20, 1000)).astype(np.float32)
    found = weights(logits)
    assert (found >= 1).all() and (found == np.round(found)).all()
    p = np.asarray(jax.nn.softmax(logits.astype(np.float64)))
    np.testing.assert_allclose(found / found.sum(1, keepdims=True), p, rtol=1e-3, atol=2e-7)
    np.testing.assert_array_equal(weights(logits + 3.0) > 1, found > 1)


def test_default_entropy_model_is_the_shorter_of_fixed_and_static(tokenizer, rng):
    x = image(rng)
    codes = tokenizer.encode(np.zeros((1, 16, 16, 3), np.float32))
    own_counts = code_counts.count_codes(tokenizer, Codec(tokenizer).tiler.encode([x]))
    other_counts = code_counts.count_codes(tokenizer, [np.asarray(codes)] * 1000)
    for counts, expected in ((own_counts, "static"), (other_counts, "fixed"), (None, "fixed")):
        data = Codec(tokenizer, counts).compress(x)
        assert bitstream.unpack(data)[0].entropy == expected


def test_static_size_is_within_one_percent_of_the_cross_entropy(tokenizer, rng):
    x = image(rng, 600, 500)
    codec = Codec(tokenizer)
    codes = codec.tiler.encode([x])[0]
    counts = code_counts.count_codes(tokenizer, [codes])
    codec.add_counts(counts)
    bits = bits_of(codes.reshape(-1), counts[0] + 1)
    assert 8 * len(codec.compress(x, entropy="static")) == pytest.approx(bits, rel=0.01)


def test_quality_keeps_the_first_levels(rng):
    tokenizer = make_tokenizer("residual")
    codec, x = Codec(tokenizer), image(rng, 200, 200)
    full, half = codec.compress(x), codec.compress(x, quality=1)
    assert len(half) == pytest.approx(len(full) / 2, rel=0.05)
    codes, _ = codec.read(full)
    first, _ = codec.read(half)
    np.testing.assert_array_equal(first, codes[..., :1])
    assert (codec.decompress(half) != codec.decompress(full)).any()
    assert codec.compress(x, quality=2) == full
    for quality in (0, 3, -1):
        with pytest.raises(UserError, match="levels 1 to 2"):
            codec.compress(x, quality=quality)
    with pytest.raises(UserError, match="residual"):
        Codec(make_tokenizer()).compress(x, quality=2)
    with pytest.raises(UserError, match="codes all levels"):
        Codec(tokenizer, prior=make_prior(tokenizer)).compress(x, quality=1)


def test_codes_of_a_fixed_size_tokenizer_survive_a_round_trip(rng):
    tokenizer = make_tokenizer("multiscale")
    priors = (make_prior(tokenizer, name) for name in ("causal", "next_scale"))
    for prior in (None, *priors):
        codec, x = Codec(tokenizer, prior=prior), image(rng)
        codes, _ = codec.read(codec.compress(x))
        np.testing.assert_array_equal(codes, codec.tiler.encode([x])[0])


def test_error_names_the_model_counts_or_prior_that_is_needed(tokenizer, counts, rng):
    x, other_tokenizer = image(rng), make_tokenizer(seed=1)
    prior = make_prior(tokenizer, "causal")
    plain, static, by_prior = (
        Codec(tokenizer),
        Codec(tokenizer, counts),
        Codec(tokenizer, None, prior),
    )
    with pytest.raises(UserError, match="another model"):
        Codec(other_tokenizer).decompress(plain.compress(x))
    with pytest.raises(UserError, match=code_counts.FILE):
        plain.decompress(static.compress(x, entropy="static"))
    with pytest.raises(UserError, match="other counts"):
        Codec(tokenizer, counts[:, ::-1]).decompress(static.compress(x, entropy="static"))
    with pytest.raises(UserError, match="needs a prior"):
        plain.decompress(by_prior.compress(x))
    with pytest.raises(UserError, match="another prior"):
        other_prior = make_prior(tokenizer, "random_order")
        Codec(tokenizer, None, other_prior).decompress(by_prior.compress(x))
    for entropy, match in (
        ("static", "needs the counts"),
        ("prior", "needs a prior"),
        ("zip", "use"),
    ):
        with pytest.raises(UserError, match=match):
            plain.compress(x, entropy=entropy)
    with pytest.raises(UserError, match="condition"):
        Codec(tokenizer, None, make_prior(tokenizer, "masked", "restore"))


def test_file_whose_probabilities_differ_here_is_refused_before_decoding(
    tokenizer, rng, monkeypatch
):
    """Simulates another backend: the last bit of every logit differs."""
    prior = make_prior(tokenizer, "causal")
    data = Codec(tokenizer, None, prior).compress(image(rng))
    other_machine = Codec(tokenizer, None, prior)
    model = other_machine.models["prior"]
    begin = model._begin

    def nudged(*arguments):
        logits, cache = begin(*arguments)
        return np.nextafter(np.asarray(logits), np.inf), cache

    monkeypatch.setattr(model, "_begin", nudged)
    monkeypatch.setattr(Decoder, "take_each", lambda *_: pytest.fail("codes were decoded"))
    with pytest.raises(UserError, match=r"(?s)cpu, JAX .*entropy='static'"):
        other_machine.decompress(data)


def test_codes_that_do_not_match_their_checksum_are_not_returned(tokenizer, rng, monkeypatch):
    """Here the CRC-32 of the outputs for fixed codes matches, so decoding begins."""
    prior = make_prior(tokenizer, "causal")
    data = Codec(tokenizer, None, prior).compress(image(rng))
    other_machine = Codec(tokenizer, None, prior)
    model = other_machine.models["prior"]
    model.outputs_crc(8)  # cached before the step changes
    step = model._step

    def changed(*arguments):
        logits, cache = step(*arguments)
        return logits[:, ::-1], cache

    monkeypatch.setattr(model, "_step", changed)
    with pytest.raises(UserError, match="computes other probabilities"):
        other_machine.decompress(data)


def mutate(entropy, side, count, quantizer):
    """Reads the codes of mutated files; every 20th file is decompressed to its image.

    Args:
      entropy: the entropy model.
      side: side of the image in pixels.
      count: number of mutated files.
      quantizer: of the tokenizer.

    Returns:
      the number of refused files with a correct checksum; the longest time of a file in seconds;
      the growth of peak memory in MiB.
    """
    rng = np.random.default_rng(0)
    tokenizer = make_tokenizer(quantizer)
    counts = rng.integers(0, 1000, (tokenizer.codes.books, 32)) ** 2
    codec = Codec(tokenizer, counts, make_prior(tokenizer, "masked"))
    data = codec.compress(image(rng, side, side), entropy=entropy)
    codec.decompress(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused, slowest = 0, 0.0
    for i, body in mutated(data, count, rng):
        started = time.perf_counter()
        try:
            if i % 20 == 1:
                result = codec.decompress(body)
                assert result.dtype == np.uint8 and result.size
            else:
                codes, shape = codec.read(body)
                assert codes.size <= 2**14 + 256 * len(body) and len(shape) == 2
        except UserError as e:
            refused += i % 2
            assert "\n" not in str(e)
        else:
            assert i % 2 or body == data, "a file with a wrong checksum was read"
        slowest = max(slowest, time.perf_counter() - started)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return refused, slowest, (after - before) / 1024


@pytest.mark.parametrize(
    ("entropy", "side", "count", "quantizer"),
    [
        ("fixed", 200, 3000, "vq"),
        ("fixed", 200, 2000, "residual/vq"),
        ("static", 200, 4800, "vq"),
        ("prior", 40, 200, "vq"),
    ],
)
def test_mutated_files_give_one_line_errors_in_bounded_time_and_memory(
    entropy, side, count, quantizer, monkeypatch
):
    """10,000 files in the four cases together, or about 2,000 (see `number`), in a process that compiles as a user's does."""
    count = number(count)
    monkeypatch.delenv("XLA_FLAGS")
    with ProcessPoolExecutor(1, get_context("spawn")) as executor:
        refused, slowest, memory_growth = executor.submit(
            mutate, entropy, side, count, quantizer
        ).result()
    assert 0.1 * count < refused < 0.5 * count
    assert slowest < 60
    assert memory_growth < 256


def test_counts_are_saved_with_a_tokenizer_and_ignored_for_another(tokenizer, counts, tmp_path):
    assert code_counts.read(tmp_path, tokenizer) is None
    code_counts.save(tmp_path, tokenizer, counts)
    np.testing.assert_array_equal(code_counts.read(tmp_path, tokenizer), counts)
    assert code_counts.read(tmp_path, make_tokenizer(seed=1)) is None
    intact = (tmp_path / code_counts.FILE).read_bytes()
    for damaged in (b"", b"no zip", intact[: len(intact) // 2]):
        (tmp_path / code_counts.FILE).write_bytes(damaged)
        with pytest.raises(UserError, match="cannot be read"):
            code_counts.read(tmp_path, tokenizer)


def test_a_file_without_levels_is_refused():
    codec = Codec(make_tokenizer("residual/vq"))
    data = bytearray(codec.compress(np.zeros((16, 16, 3), np.uint8), entropy="fixed"))
    assert data[11] == 2  # levels
    data[11] = 0
    data[-4:] = struct.pack("<I", zlib.crc32(data[:-4]))
    with pytest.raises(UserError, match="header is not valid"):
        codec.decompress(bytes(data))

"""Compression from Python: random params, for what is tested holds for any."""

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
from small import bits as bits_of
from small import make_prior, make_tokenizer

from vq_jax import bitstream, codec
from vq_jax.bitstream import Decoder, Encoder
from vq_jax.codec import Codec, PriorModel
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


def packed(model, codes):
    encoder = Encoder()
    about = model.put(encoder, codes)
    return about, encoder.finish()


@pytest.mark.parametrize("entropy", ["fixed", "static", *PRIORS])
def test_the_codes_come_back_exactly(tokenizer, counts, rng, entropy):
    prior = make_prior(tokenizer, entropy) if entropy in PRIORS else None
    opened, name = Codec(tokenizer, counts, prior), "prior" if prior else entropy
    for x in (image(rng), image(rng, 16, 16), image(rng, 1, 3), image(rng, 33, 8)):
        data = opened.compress(x, entropy=name)
        codes, shape = opened.read(data)
        assert shape == x.shape[:2]
        np.testing.assert_array_equal(codes, opened.medium.encode([x])[0])
        result = opened.decompress(data)
        assert result.dtype == np.uint8 and result.shape == x.shape
        (expected,) = opened.medium.decode([codes], [shape])
        np.testing.assert_array_equal(result, expected)


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(PRIORS),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 2**32),
)
def test_a_prior_codes_grids_of_any_shape(models, name, height, width, seed):
    codes = np.random.default_rng(seed).integers(0, 32, (height, width, 1), np.int32)
    about, payload = packed(models[name], codes)
    taken = models[name].take(Decoder(payload), about, (height, width), 1)
    np.testing.assert_array_equal(taken, codes)


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_codes_several_codes_a_position(rng, name):
    tokenizer = make_tokenizer("residual")
    model = PriorModel(make_prior(tokenizer, name))
    codes = rng.integers(0, tokenizer.num_codes, (6, 5, 2), np.int32)
    about, payload = packed(model, codes)
    np.testing.assert_array_equal(model.take(Decoder(payload), about, (6, 5), 2), codes)


@pytest.mark.parametrize("name", ["causal", "random_order"])
def test_size_is_within_one_percent_of_the_priors_own_cross_entropy(tokenizer, rng, name):
    prior = make_prior(tokenizer, name)
    # What the prior itself would draw, and so well coded by it.
    codes = prior.sample_codes(64, seed=1)
    bits = -prior.log_probability(codes).sum() / np.log(2)
    grid = np.concatenate(list(codes.reshape(64, *tokenizer.grid)), axis=0)[..., None]
    _, payload = packed(PriorModel(prior), grid)
    assert bits < 0.97 * codes.size * 5
    assert 8 * len(payload) == pytest.approx(bits, rel=0.01)


def test_a_masked_prior_gives_groups_of_codes_each_once(models, rng):
    """Its payload is as long as the codes' likelihoods say, group by group."""
    codes, bits, seen = rng.integers(0, 32, (1, 16)), 0.0, []

    def settle(where, logits):
        nonlocal bits
        bits += bits_of(codes[where], codec.weights(logits))
        seen.extend(zip(*where, strict=True))
        return codes[where]

    models["masked"]._walk(np.ones((1, 16), bool), settle)
    assert len(seen) == len(set(seen)) == 16
    _, payload = packed(models["masked"], codes.reshape(4, 4, 1).astype(np.int32))
    assert 0 <= 8 * len(payload) - bits < 9


def test_weights_are_positive_whole_numbers_near_the_probabilities(rng):
    logits = rng.normal(0, 8, (20, 1000)).astype(np.float32)
    found = codec.weights(logits)
    assert (found >= 1).all() and (found == np.round(found)).all()
    p = np.asarray(jax.nn.softmax(logits.astype(np.float64)))
    np.testing.assert_allclose(found / found.sum(1, keepdims=True), p, rtol=1e-3, atol=2e-7)
    np.testing.assert_array_equal(codec.weights(logits + 3.0) > 1, found > 1)


def test_without_a_wish_the_shorter_of_fixed_and_static_is_taken(tokenizer, rng):
    x = image(rng)
    codes = tokenizer.encode(np.zeros((1, 16, 16, 3), np.float32))
    fitting = codec.count(tokenizer, Codec(tokenizer).medium.encode([x]))
    apart = codec.count(tokenizer, [np.asarray(codes)] * 1000)
    for counts, expected in ((fitting, "static"), (apart, "fixed"), (None, "fixed")):
        data = Codec(tokenizer, counts).compress(x)
        assert bitstream.unpack(data)[0].entropy == expected


def test_static_is_within_one_percent_of_the_counts_cross_entropy(tokenizer, rng):
    x = image(rng, 600, 500)
    opened = Codec(tokenizer)
    codes = opened.medium.encode([x])[0]
    counts = codec.count(tokenizer, [codes])
    opened.add_counts(counts)
    bits = bits_of(codes.reshape(-1), counts[0] + 1)
    assert 8 * len(opened.compress(x, entropy="static")) == pytest.approx(bits, rel=0.01)


def test_quality_drops_levels(rng):
    tokenizer = make_tokenizer("residual")
    opened, x = Codec(tokenizer), image(rng, 200, 200)
    full, half = opened.compress(x), opened.compress(x, quality=1)
    assert len(half) == pytest.approx(len(full) / 2, rel=0.05)
    codes, _ = opened.read(full)
    first, _ = opened.read(half)
    np.testing.assert_array_equal(first, codes[..., :1])
    assert (opened.decompress(half) != opened.decompress(full)).any()
    assert opened.compress(x, quality=2) == full
    for quality in (0, 3, -1):
        with pytest.raises(UserError, match="levels 1 to 2"):
            opened.compress(x, quality=quality)
    with pytest.raises(UserError, match="residual"):
        Codec(make_tokenizer()).compress(x, quality=2)
    with pytest.raises(UserError, match="codes all levels"):
        Codec(tokenizer, prior=make_prior(tokenizer)).compress(x, quality=1)


def test_codes_of_a_tokenizer_for_one_size_only(rng):
    tokenizer = make_tokenizer("multiscale")
    for prior in (None, make_prior(tokenizer, "causal")):
        opened, x = Codec(tokenizer, prior=prior), image(rng)
        codes, _ = opened.read(opened.compress(x))
        np.testing.assert_array_equal(codes, opened.medium.encode([x])[0])


def test_what_a_file_needs_and_is_not_there_is_said(tokenizer, counts, rng):
    x, other = image(rng), make_tokenizer(seed=1)
    prior = make_prior(tokenizer, "causal")
    plain, static, by_prior = (
        Codec(tokenizer),
        Codec(tokenizer, counts),
        Codec(tokenizer, None, prior),
    )
    with pytest.raises(UserError, match="another model"):
        Codec(other).decompress(plain.compress(x))
    with pytest.raises(UserError, match=codec.COUNTS):
        plain.decompress(static.compress(x, entropy="static"))
    with pytest.raises(UserError, match="other counts"):
        Codec(tokenizer, counts[:, ::-1]).decompress(static.compress(x, entropy="static"))
    with pytest.raises(UserError, match="needs a prior"):
        plain.decompress(by_prior.compress(x))
    with pytest.raises(UserError, match="another prior"):
        changed = make_prior(tokenizer, "random_order")
        Codec(tokenizer, None, changed).decompress(by_prior.compress(x))
    for entropy, match in (
        ("static", "needs the counts"),
        ("prior", "needs a prior"),
        ("zip", "use"),
    ):
        with pytest.raises(UserError, match=match):
            plain.compress(x, entropy=entropy)
    with pytest.raises(UserError, match="condition"):
        Codec(tokenizer, None, make_prior(tokenizer, "masked", "restore"))


def test_where_the_prior_computes_otherwise_it_is_said_before_anything_is_read(
    tokenizer, rng, monkeypatch
):
    """As on another backend: the last bit of every logit differs."""
    prior = make_prior(tokenizer, "causal")
    data = Codec(tokenizer, None, prior).compress(image(rng))
    elsewhere = Codec(tokenizer, None, prior)
    model = elsewhere.models["prior"]
    begin = model._begin

    def nudged(*arguments):
        logits, cache = begin(*arguments)
        return np.nextafter(np.asarray(logits), np.inf), cache

    monkeypatch.setattr(model, "_begin", nudged)
    monkeypatch.setattr(Decoder, "take_each", lambda *_: pytest.fail("it was read"))
    with pytest.raises(UserError, match=r"(?s)cpu, JAX .*entropy=static"):
        elsewhere.decompress(data)


def test_codes_that_come_out_otherwise_are_never_handed_out(tokenizer, rng, monkeypatch):
    """Even where the fixed question is answered alike."""
    prior = make_prior(tokenizer, "causal")
    data = Codec(tokenizer, None, prior).compress(image(rng))
    elsewhere = Codec(tokenizer, None, prior)
    model = elsewhere.models["prior"]
    model._answer(8)  # as it was asked before the step changes
    step = model._step

    def changed(*arguments):
        logits, cache = step(*arguments)
        return logits[:, ::-1], cache

    monkeypatch.setattr(model, "_step", changed)
    with pytest.raises(UserError, match="come out otherwise"):
        elsewhere.decompress(data)


def mutate(entropy, side, mutated):
    """Reads mutated files in a process of its own, every 20th to its image.

    Half of them get a checksum that fits, so that all behind it is met, too.

    Returns:
      how many of that half were refused, the most seconds one took, megabytes by which memory grew.
    """
    rng = np.random.default_rng(0)
    tokenizer = make_tokenizer()
    counts = rng.integers(0, 1000, (1, 32)) ** 2
    opened = Codec(tokenizer, counts, make_prior(tokenizer, "masked"))
    data = opened.compress(image(rng, side, side), entropy=entropy)
    opened.decompress(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused, slowest = 0, 0.0
    for i in range(mutated):
        body = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            kind, place = rng.integers(4), int(rng.integers(len(body) + 1))
            if kind == 0 and place < len(body):
                body[place] = rng.integers(256)
            elif kind == 1:
                body[place:place] = rng.bytes(rng.integers(1, 9))
            elif kind == 2:
                del body[place:]
            else:
                body[9:9] = b"\xff" * int(rng.integers(1, 5))  # vast sizes
        if i % 2:
            body[-4:] = struct.pack("<I", zlib.crc32(body[:-4]))
        started = time.perf_counter()
        try:
            if i % 20 == 1:
                result = opened.decompress(bytes(body))
                assert result.dtype == np.uint8 and result.size
            else:
                codes, shape = opened.read(bytes(body))
                assert codes.size <= 2**14 + 256 * len(body) and len(shape) == 2
        except UserError as e:
            refused += i % 2
            assert "\n" not in str(e)
        else:
            assert i % 2 or body == data, "without a checksum that fits"
        slowest = max(slowest, time.perf_counter() - started)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return refused, slowest, (after - before) / 1024


@pytest.mark.parametrize(
    ("entropy", "side", "mutated"),
    [("fixed", 200, 5000), ("static", 200, 4800), ("prior", 40, 200)],
)
def test_mutated_files_end_in_one_line_in_little_time_and_memory(
    entropy, side, mutated, monkeypatch
):
    """10,000 over the three, in a process that compiles as a user's does."""
    monkeypatch.delenv("XLA_FLAGS")
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        refused, slowest, grown = process.submit(mutate, entropy, side, mutated).result()
    assert 0.1 * mutated < refused < 0.5 * mutated
    assert slowest < 60
    assert grown < 256


def test_counts_lie_beside_the_model_and_belong_to_it(tokenizer, counts, tmp_path):
    assert codec.read_counts(tmp_path, tokenizer) is None
    codec.save_counts(tmp_path, tokenizer, counts)
    np.testing.assert_array_equal(codec.read_counts(tmp_path, tokenizer), counts)
    assert codec.read_counts(tmp_path, make_tokenizer(seed=1)) is None
    whole = (tmp_path / codec.COUNTS).read_bytes()
    for damaged in (b"", b"no zip", whole[: len(whole) // 2]):
        (tmp_path / codec.COUNTS).write_bytes(damaged)
        with pytest.raises(UserError, match="cannot be read"):
            codec.read_counts(tmp_path, tokenizer)

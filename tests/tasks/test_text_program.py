"""The program on texts: training, figures, files without loss, samples and gaps."""

import json
import random
import re
import resource
import struct
import zlib

import numpy as np
import pytest
from mutations import mutated, number
from running import program, user_error

import vq_jax
from vq_jax import codec, modalities, text_editing
from vq_jax.config import base, base_prior
from vq_jax.errors import UserError
from vq_jax.tasks.train import train

TEXT = modalities.MODALITIES["text"]
LENGTH = 64
WORDS = [
    "the",
    "of",
    "and",
    "in",
    "light",
    "was",
    "good",
    "God",
    "said",
    "let",
    "there",
    "be",
    "water",
    "heaven",
    "earth",
    "day",
    "night",
]
PRIORS = {"parallel": "masked", "sequential": "causal"}


def write_texts(folder, count=12):
    """Writes files, one of them without a suffix."""
    rng = random.Random(0)
    folder.mkdir()
    for i in range(count):
        text = " ".join(rng.choice(WORDS) for _ in range(700))
        (folder / (f"{i}.txt" if i else "README")).write_text(text)
    return folder


def tokenizer_config(books, causal_layers):
    config = base("text_conv", "vq")
    config.data.update(source="text", folder=str(books), length=LENGTH, batch_size=16)
    config.model.update(width=32, heads=4, layers=1, factor=4, causal_layers=causal_layers)
    if causal_layers:
        config.model.update(ngrams=(2, 3), ngram_bits=8, ngram_dim=8)
    config.quantizer.update(num_codes=64, dim=8)
    config.optim.lr = 3e-3
    config.update(kmeans_batches=2, tensorboard=False, ema_decay=0.9)
    config.phases.update(autoencoder=40, quantizer=5, joint=60)
    return config


def prior_config(books, prior, tokenizer, steps):
    config = base_prior(prior, modality="text")
    config.tokenizer = str(tokenizer)
    config.data.update(source="text", folder=str(books), length=LENGTH, batch_size=16)
    config.prior.update(layers=1, width=32, heads=4)
    if prior == "causal":
        config.prior.update(ngrams=(2, 3), ngram_bits=8, ngram_dim=8)
    config.optim.lr = 3e-3
    config.update(tensorboard=False, ema_decay=0.9)
    config.eval_samples = 8 if tokenizer == "bytes" else 0
    config.phases.prior = steps
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with books, two tokenizers with priors, and a prior over bytes."""
    folder = tmp_path_factory.mktemp("texts")
    books = write_texts(folder / "books")
    for name, prior in PRIORS.items():
        train(tokenizer_config(books, 2 * (name == "sequential")), folder / name)
        train(prior_config(books, prior, folder / name, 30), folder / f"{name}_prior")
    train(prior_config(books, "causal", "bytes", 80), folder / "bytes_prior")
    return folder


@pytest.fixture(scope="module")
def text(runs):
    return (runs / "books" / "3.txt").read_bytes()


ALL = ("parallel", "sequential", "parallel_prior", "sequential_prior", "bytes_prior")


@pytest.mark.parametrize("name", ["parallel", "sequential"])
def test_figures_of_a_tokenizer_add_up(runs, name):
    figures = json.loads((runs / name / "evaluation.json").read_text())
    assert figures["bits_per_byte"] == pytest.approx(6 / 4)
    assert 0 < figures["entropy_bits_per_byte"] <= 1.5
    total = figures["entropy_bits_per_byte"] + figures["bits_per_byte_given_codes"]
    assert figures["bits_per_byte_sum"] == pytest.approx(total)
    assert total < 4.5  # of log2(20 characters)
    assert figures["byte_accuracy"] > 0.4 and 0 <= figures["exact_windows"] < 1
    text = (runs / name / "reconstructions.txt").read_text()
    assert text.count("-" * 80) == 11 and "God" in text


@pytest.mark.parametrize("name", ["parallel", "sequential"])
def test_the_likelihood_of_a_text_is_the_sum_of_those_of_its_parts(runs, name, text):
    tokenizer = codec.load(runs / name).tokenizer
    x = np.frombuffer(text[: tokenizer.spec.shape[0]], np.uint8)[None].astype(np.int32)
    codes, first = tokenizer.encode(x), np.arange(x.shape[1]) < 5
    whole = tokenizer.log_likelihood(x, codes)
    parts = [tokenizer.log_likelihood(x, codes, counted) for counted in (first, ~first)]
    assert parts[0] < 0 and parts[1] < 0
    np.testing.assert_allclose(parts[0] + parts[1], whole, rtol=1e-5)


def test_figures_of_a_prior_add_the_bytes_given_codes(runs):
    for name in ("parallel_prior", "sequential_prior"):
        figures = json.loads((runs / name / "evaluation.json").read_text())
        own = json.loads((runs / name.removesuffix("_prior") / "evaluation.json").read_text())
        given = figures["bits_per_byte_given_codes"]
        assert given == pytest.approx(own["bits_per_byte_given_codes"], rel=1e-3)
        assert figures["bits_per_byte_sum"] == pytest.approx(figures["bits_per_byte"] + given)
    figures = json.loads((runs / "bytes_prior" / "evaluation.json").read_text())
    assert figures["bits_per_byte"] < 2.5
    assert (runs / "bytes_prior" / "samples.txt").read_text().strip()


CASES = {
    "empty": lambda text: b"",
    "one byte": lambda text: b"a",
    "cut in the middle of a character": lambda text: text[:200] + "Æ".encode()[:1],
    "binary": lambda text: np.random.default_rng(1).bytes(3001),
    "zeros": lambda text: bytes(5000),
    "a text": lambda text: text,
    "both": lambda text: text[:500] + np.random.default_rng(2).bytes(700) + text[:333],
}


@pytest.mark.parametrize("name", ALL)
def test_every_byte_comes_back(runs, name, text):
    opened = codec.load(runs / name)
    sizes = {}
    for case, make in CASES.items():
        data = make(text)
        packed = opened.compress(np.frombuffer(data, np.uint8))
        assert opened.decompress(packed).tobytes() == data, case
        assert len(packed) <= 1.01 * len(data) + 32, case
        sizes[case] = len(packed), packed[8] & 15
    assert sizes["a text"][0] < 0.35 * len(text) and sizes["a text"][1] == 3
    assert sizes["both"][0] < 700 + 0.45 * 833 + 100  # noise is stored, window by window
    assert sizes["zeros"][0] < 100 and sizes["binary"][1] == sizes["empty"][1] == 4


def test_a_file_is_as_long_as_the_figures_say(runs):
    opened = codec.load(runs / "bytes_prior")
    figures = json.loads((runs / "bytes_prior" / "evaluation.json").read_text())
    held = modalities.open_source(vq_jax.load(runs / "bytes_prior").config).val.documents
    data = [document.read(0, document.size) for document in held]
    packed = [opened.compress(np.frombuffer(one, np.uint8)) for one in data]
    payload = sum(len(one) - 35 for one in packed)  # without the header
    assert 8 * payload / sum(map(len, data)) == pytest.approx(figures["bits_per_byte"], rel=0.04)


def test_lossy_files_keep_the_codes_alone(runs, text):
    opened = codec.load(runs / "parallel")
    x = np.frombuffer(text, np.uint8)
    packed = opened.compress(x, lossy=True)
    assert len(packed) < len(opened.compress(x))
    y = opened.decompress(packed)
    assert len(y) == len(x) and 0.4 < (x == y).mean() < 1
    codes, shape = opened.read(packed)
    assert shape == (len(x),) and codes.shape == (-(-len(x) // 4),)
    with pytest.raises(UserError, match="decompress it"):
        opened.read(opened.compress(x))


def test_files_of_other_models_and_machines_are_refused(runs, text):
    x = np.frombuffer(text, np.uint8)
    opened = codec.load(runs / "sequential_prior")
    packed = opened.compress(x, entropy="prior")
    with pytest.raises(UserError, match="needs a prior"):
        codec.load(runs / "sequential").decompress(packed)
    without_counts = codec.Codec(opened.tokenizer, None, vq_jax.load(runs / "sequential_prior"))
    both = opened.compress(x)
    if not both[8 + 4] & 2:  # counts were available, and not used
        assert without_counts.decompress(both).tobytes() == text
    with pytest.raises(UserError, match="another model"):
        codec.load(runs / "parallel").decompress(packed)
    other = codec.load(runs / "sequential")
    counts = np.ones((1, 64), np.int64)
    other.add_counts(counts)
    of_counts = other.compress(x, entropy="static")
    other.add_counts(counts + 1)
    with pytest.raises(UserError, match="other counts"):
        other.decompress(of_counts)
    damaged = bytearray(packed)
    place = 9 + 2 + 1 + 10  # header, sizes and levels; what precedes the platform
    damaged[place : place + 8] = b"\1\0\7\7abcd"
    damaged[-4:] = struct.pack("<I", zlib.crc32(damaged[:-4]))
    with pytest.raises(UserError, match="gpu, JAX 0.7.7"):
        opened.decompress(bytes(damaged))


@pytest.mark.parametrize(
    ("name", "form", "count"),
    [
        ("parallel", "lossy", 6000),
        ("parallel", "stored", 1000),
        ("parallel", "lossless", 2800),
        ("sequential_prior", "lossless", 200),
    ],
)
def test_mutated_files_give_one_line_errors_in_bounded_memory(runs, text, name, form, count):
    """10,000 files in the four cases together, or about 2,000 (see `number`); every 20th lossy one is decoded, too."""
    count = number(count)
    opened, rng = codec.load(runs / name), np.random.default_rng(0)
    x = rng.bytes(300) if form == "stored" else text[:300]
    data = opened.compress(np.frombuffer(x, np.uint8), lossy=form == "lossy")
    opened.decompress(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for i, body in mutated(data, count, rng):
        try:
            content = opened.open(body)
            assert content.shape[0] <= 4 * (2**14 + 256 * len(body))
            if i % 20 == 1:
                assert len(next(opened.decode([content]))) == content.shape[0]
        except UserError as e:
            refused += i % 2
            assert "\n" not in str(e)
        else:
            assert i % 2 or body == data, "a file with a wrong checksum was read"
    assert 0.1 * count < refused <= 0.5 * count
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 256


def test_files_and_folders_are_compressed_and_come_back(runs, text):
    program("--mode=compress", f"--workdir={runs}/parallel", f"--input={runs}/books",
            f"--output={runs}/small")  # fmt: skip
    assert (runs / "small" / "3.txt.vqz").exists()
    assert (runs / "parallel" / "code_counts.npz").exists()
    program("--mode=decompress", f"--workdir={runs}/parallel", f"--input={runs}/small",
            f"--output={runs}/back")  # fmt: skip
    for path in (runs / "books").iterdir():
        assert (runs / "back" / path.name).read_bytes() == path.read_bytes()
    common = f"--workdir={runs}/bytes_prior", f"--input={runs}/books/3.txt"
    result = program("--mode=compress", *common, f"--output={runs}/3.vqz")
    assert re.search(r"bits a byte", result.stdout)
    program("--mode=decompress", common[0], f"--input={runs}/3.vqz", f"--output={runs}/3.bin")
    assert (runs / "3.bin").read_bytes() == text
    assert "no folder for counts" in user_error("--mode=compress", *common, f"--output={runs}/3.vqz",
                                     "--entropy=static")  # fmt: skip


def test_texts_are_reconstructed(runs, text):
    program("--mode=reconstruct", f"--workdir={runs}/parallel", f"--input={runs}/books/3.txt",
            f"--output={runs}/again.txt")  # fmt: skip
    program("--mode=reconstruct", f"--workdir={runs}/parallel", f"--input={runs}/books",
            f"--output={runs}/all")  # fmt: skip
    names = [sorted(p.name for p in (runs / folder).iterdir()) for folder in ("books", "all")]
    assert names[0] == names[1]
    again = (runs / "again.txt").read_bytes()
    assert (
        len(again) == len(text)
        and np.mean(np.frombuffer(again, np.uint8) == np.frombuffer(text, np.uint8)) > 0.4
    )


def test_samples_are_printed_and_written_and_continue_a_prompt(runs):
    for name in ("bytes_prior", "parallel_prior", "sequential_prior"):
        output = runs / f"{name}_samples"
        result = program("--mode=sample", f"--workdir={runs}/{name}", "--count=3",
                         "--prompt=And God said", f"--output={output}")  # fmt: skip
        for i in range(3):
            written = (output / f"{i:05d}.txt").read_bytes()
            assert written.startswith(b"And God said") and len(written) <= LENGTH
            assert TEXT.shown(np.frombuffer(written, np.uint8)) in result.stdout
        assert (output / "grid.txt").exists()
    long = "x" * LENGTH
    error = user_error("--mode=sample", f"--workdir={runs}/bytes_prior", f"--prompt={long}")
    assert "the prompt has 64 bytes, and this prior writes texts of 64" in error


def test_gaps_are_filled_and_the_rest_stays(runs, text):
    start = text[:40]
    (runs / "gap.txt").write_bytes(start + b"_" * 12 + text[52:300])
    program("--mode=inpaint", f"--workdir={runs}/parallel_prior", f"--input={runs}/gap.txt",
            f"--output={runs}/filled.txt")  # fmt: skip
    filled = (runs / "filled.txt").read_bytes()
    assert filled[:40] == start and filled[52:] == text[52:300] and b"_" not in filled
    common = "--mode=inpaint", f"--input={runs}/gap.txt", f"--output={runs}/filled.txt"
    error = user_error(*common, f"--workdir={runs}/sequential_prior")
    assert "does not see what is after a gap" in error
    assert "no '%' in the text" in user_error(
        *common, f"--workdir={runs}/parallel_prior", "--gap=%"
    )
    prior = vq_jax.load(runs / "parallel_prior")
    x, gap = np.frombuffer(text[:300], np.uint8), np.zeros(300, bool)
    gap[[10, 200]] = True
    with pytest.raises(UserError, match="span 191 bytes, and this prior reads 64"):
        text_editing.fill_gap(prior, x, gap)
    gap[200] = False
    again = [text_editing.fill_gap(prior, x, gap, seed=1, candidates=3) for _ in range(2)]
    np.testing.assert_array_equal(*again)
    assert "upscale is not for texts" in user_error(
        "--mode=upscale", *common[1:], f"--workdir={runs}/parallel_prior"
    )


def test_codes_of_texts_are_written_for_priors(runs):
    program("--mode=tokenize", f"--workdir={runs}/parallel", f"--output={runs}/codes")
    config = prior_config(runs / "books", "random_order", runs / "parallel", 3)
    config.data.update(source="codes", folder=str(runs / "codes"))
    train(config, runs / "from_codes")
    figures = json.loads((runs / "from_codes" / "evaluation.json").read_text())
    assert figures["bits_per_byte"] > 0 and "bits_per_byte_sum" not in figures


def test_texts_that_cannot_be_read_are_refused(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, message in (
        (tmp_path / "empty", "there are no files in"),
        (tmp_path / "none", "there is no file or folder"),
    ):
        config = tokenizer_config(folder, 0)
        with pytest.raises(UserError, match=message):
            train(config, tmp_path / "run")
    with pytest.raises(ValueError, match="fewer than one code spans"):
        vq_jax.load(runs / "parallel").encode(b"abc")
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="make it bytes, or uint8"):
        codec.load(runs / "parallel").compress(image)

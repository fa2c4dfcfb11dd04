"""Runs, exports, codes and `.vqz` files of an earlier commit open as they did.

`tests/data/d8570e3.zip` was made by that commit, the last one before modalities; its README.txt says how.
"""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import program, user_error

import vq_jax
from vq_jax import codec
from vq_jax.config import load as load_config

ARCHIVE = Path(__file__).parent / "data" / "d8570e3.zip"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("old")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(autouse=True)
def _in_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)  # the prior's config names its tokenizer by a relative path


@pytest.fixture(scope="module")
def expected(folder):
    with np.load(folder / "expected.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("run", ["old/tokenizer", "old/exported"])
def test_a_tokenizer_has_the_same_codes_and_fingerprint(run, expected):
    tok = vq_jax.load(run)
    images = expected["images"].astype(np.float32) / 127.5 - 1.0
    np.testing.assert_array_equal(tok.encode(images), expected["codes"])
    np.testing.assert_allclose(tok.decode(expected["codes"]), expected["decoded"], atol=1e-5)
    assert tok.fingerprint == expected["fingerprint"].tobytes()


@pytest.mark.parametrize("run", ["old/prior", "old/exported_prior"])
def test_a_prior_has_the_same_likelihood_and_samples(run, expected):
    prior = vq_jax.load(run)
    log_p = prior.log_probability(expected["codes"], label="b")
    np.testing.assert_allclose(log_p, expected["log_p"], atol=1e-4)
    samples = prior.sample_codes(3, label="b", seed=7)
    np.testing.assert_array_equal(samples, expected["samples"])


@pytest.mark.parametrize("entropy", ["fixed", "static"])
def test_a_compressed_file_decompresses_to_the_same_image(entropy):
    decoded = codec.load("old/tokenizer").decompress(Path(f"{entropy}.vqz").read_bytes())
    difference = decoded.astype(int) - np.asarray(Image.open("decoded.png")).astype(int)
    assert np.abs(difference).max() <= 1
    codes, shape = codec.load("old/tokenizer").read(Path(f"{entropy}.vqz").read_bytes())
    assert shape == (24, 40) and codes.shape == (6, 10)


@pytest.mark.parametrize("entropy", ["fixed", "static"])
def test_a_file_compresses_to_the_same_bytes(entropy):
    image = np.asarray(Image.open("picture.png"))
    data = codec.load("old/tokenizer").compress(image, entropy=entropy)
    assert data == Path(f"{entropy}.vqz").read_bytes()


def test_a_file_coded_by_the_prior_is_read_or_refused_in_one_line():
    """Its probabilities depend on the machine and on compiler options, which tests set."""
    decoded = program(
        "--mode=decompress", "--workdir=old/tokenizer", "--input=fixed.vqz", "--output=a.png"
    )
    assert "decompressed 1 of 1" in decoded.stdout
    opened = codec.load("old/prior")
    try:
        image = opened.decompress(Path("prior.vqz").read_bytes())
    except vq_jax.UserError as e:
        assert "entropy='static', which reads everywhere" in str(e)
    else:
        np.testing.assert_array_equal(image, np.asarray(Image.open("a.png")))


def test_an_old_run_trains_further():
    program("--mode=train", "--config=default", *_like("old/tokenizer"), "--config.phases.joint=6")
    assert vq_jax.load("old/tokenizer").step == 14
    lines = Path("old/tokenizer/metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 14


def test_a_prior_trains_from_an_old_set_of_codes(tmp_path):
    said = program(
        "--config=prior_default", "--config.tokenizer=old/exported", "--config.data.source=codes",
        "--config.data.folder=old/codes", "--config.data.batch_size=4", "--config.prior.layers=1",
        "--config.prior.width=16", "--config.prior.heads=2", "--config.phases.prior=1",
        "--config.data.resolution=16", "--config.eval_samples=0", f"--workdir={tmp_path}/new",
    )  # fmt: skip
    assert "20 training images, 4 held out" in said.stdout
    assert load_config(tmp_path / "new" / "config.json").codes.example == (16, 16, 3)
    text = user_error("--mode=sample", "--workdir=old/exported")
    assert "holds a tokenizer, not a prior" in text


def _like(run):
    """Flags that give the recipe `default` the values of an old run's config."""
    from vq_jax.config import base, differences

    old, now = load_config(Path(run) / "config.json"), base("vqvae")
    flags = []
    for field in differences(now, old):
        place = field.split(" ")[0]
        value = old
        for part in place.split("."):
            value = value[part]
        if place.split(".")[0] not in ("anneal",) and value is not None:
            flags.append(f"--config.{place}={value}")
    return [*flags, f"--workdir={run}"]

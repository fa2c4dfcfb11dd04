"""Sets of images held against each other: what is kept, what is compared, and what is said of it."""

import dataclasses
import json
import shutil

import chex
import jax
import numpy as np
import pytest
import torch
from PIL import Image
from small import make_prior, make_tokenizer, write
from torch_inception import random_inception
from torch_models import VQGAN, PatchGAN, randomise

from vq_jax import config as configs
from vq_jax.data.sources import open_source
from vq_jax.errors import UserError
from vq_jax.interop.weights import read_group
from vq_jax.models.transformer import unstack
from vq_jax.prior import TrainedPrior
from vq_jax.tasks import frechet
from vq_jax.tasks.evaluate import evaluate
from vq_jax.tasks.evaluate_prior import _as_sets
from vq_jax.tasks.frechet import Network, compare, look, look_once
from vq_jax.tasks.import_weights import import_weights
from vq_jax.tasks.train_prior import prior_job
from vq_jax.tasks.train_tokenizer import tokenizer_job
from vq_jax.tokenizer import load


@pytest.fixture
def seen(monkeypatch, tmp_path):
    """A network that sees mean colours, and a list of how many images it was shown at a time."""
    monkeypatch.setenv("VQ_JAX_CACHE", str(tmp_path / "cache"))
    shown = []

    def features(images):
        shown.append(len(images))
        return images.reshape(len(images), -1, 3).mean(1).astype(np.float32)

    return Network("fid_test", "FID (test)", "mean colours", "1", features), shown


def batches(images, size=7):
    return lambda: (images[i : i + size] for i in range(0, len(images), size))


def test_statistics_are_kept_under_a_hash_of_the_pixels(seen, rng):
    network, shown = seen
    images = rng.integers(0, 256, size=(20, 4, 4, 3), dtype=np.uint8)
    first = look_once(network, batches(images))
    assert sum(shown) == 20
    again = look_once(network, batches(images, size=3))
    assert sum(shown) == 20  # looked at no image
    np.testing.assert_array_equal(again.statistics.scatter, first.statistics.scatter)
    np.testing.assert_array_equal(again.features, first.features)
    images[13, 2, 2, 1] ^= 1
    look_once(network, batches(images))
    assert sum(shown) == 40
    look_once(dataclasses.replace(network, digest="2"), batches(images))
    assert sum(shown) == 60


def test_a_damaged_cache_is_made_again(seen, rng):
    network, shown = seen
    images = rng.integers(0, 256, size=(20, 4, 4, 3), dtype=np.uint8)
    first = look_once(network, batches(images))
    (path,) = frechet.cache_folder().iterdir()
    path.write_bytes(path.read_bytes()[:100])
    again = look_once(network, batches(images))
    assert sum(shown) == 40
    np.testing.assert_array_equal(again.statistics.mean, first.statistics.mean)


def test_equal_sets_are_at_zero_and_moved_ones_as_far_as_they_moved(seen, rng):
    network, _ = seen
    images = rng.integers(50, 200, size=(40, 4, 4, 3), dtype=np.uint8)
    real = look(network, batches(images)())
    assert compare(network, real, real)["fid_test"] == pytest.approx(0.0, abs=1e-6)
    moved = look(network, batches(images + np.uint8(10))())
    assert compare(network, real, moved)["fid_test"] == pytest.approx(300.0, rel=1e-5)


def test_features_are_kept_up_to_a_number(seen, rng, monkeypatch):
    monkeypatch.setattr(frechet, "KEPT", 10)
    images = rng.integers(0, 256, size=(20, 4, 4, 3), dtype=np.uint8)
    found = look(seen[0], batches(images)())
    assert len(found.features) == 10 and found.statistics.count == 20
    # Drawn from all of them, though they come sorted.
    steps = np.repeat(np.arange(200, dtype=np.uint8), 4 * 4 * 3).reshape(200, 4, 4, 3)
    kept = look(seen[0], batches(steps)()).features[:, 0]
    assert len(set(kept)) == 10 and kept.min() < 60 and kept.max() > 140
    with pytest.raises(UserError, match="two images"):
        look(seen[0], batches(images[:1])())


def test_clean_is_pillows_bicubic_on_floats(rng):
    image = rng.integers(80, 170, size=(300, 500, 3), dtype=np.uint8)
    image[:100] = 0
    image[100:120] = 255
    found = frechet._clean(image)
    assert found.shape == (299, 299, 3) and found.dtype == np.float32
    rounded = Image.fromarray(image).resize((299, 299), Image.Resampling.BICUBIC)
    assert found.min() == 0 and found.max() == 255  # cubic interpolation alone overshoots
    assert np.abs(found - np.asarray(rounded)).max() < 1.5  # rounded twice
    assert (found != found.round()).any()


def test_the_inception_score_is_of_all_samples_in_no_order(seen, monkeypatch):
    """100 classes, sorted: in their order each part of the score would see a few of them."""
    sure = np.repeat(np.eye(100, dtype=np.float32), 100, axis=0)
    network = dataclasses.replace(seen[0], probabilities=lambda rows: sure[: len(rows)])
    images = np.zeros((10_000, 1, 1, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(10_000) % 251
    monkeypatch.setattr(frechet, "_BATCH", 10_000)
    made = look(network, batches(images)(), classes=True)
    assert made.probabilities.shape == (10_000, 100)
    score = compare(network, made, made)["fid_test_inception_score"]
    assert score == pytest.approx(100.0, rel=0.02)


def test_samples_are_held_against_all_training_images(seen):
    network, shown = seen
    prior = make_prior(make_tokenizer(), "masked")
    images = [{"image": np.full((16, 16, 3), 12 * i, np.uint8), "label": i % 3} for i in range(20)]
    figures, real = _as_sets(prior, images, network, 10, 0)
    assert real == 20 and sum(shown) == 30
    assert figures.keys() == {"gfid_test"} and figures["gfid_test"] > 0


@pytest.fixture(scope="module")
def imported_once(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("imported")
    model, judge = randomise(VQGAN(mults=(1, 2, 1), attended=())), randomise(PatchGAN(n_layers=1))
    state = model.state_dict()
    state |= {f"loss.discriminator.{k}": v for k, v in judge.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "x.ckpt")
    import_weights(tmp_path / "x.ckpt", tmp_path / "imported")
    config = configs.load(tmp_path / "imported" / "config.json")
    config.data.resolution = 32
    config.data.batch_size = 8
    configs.save(config, tmp_path / "imported" / "config.json")
    return tmp_path / "imported"


@pytest.fixture
def imported(imported_once):
    return imported_once, configs.load(imported_once / "config.json")


@pytest.mark.parametrize("protocol", frechet.PROTOCOLS)
def test_an_imported_tokenizer_is_measured_and_the_protocol_told(
    imported, protocol, tmp_path, rng, monkeypatch, capsys
):
    monkeypatch.setenv("VQ_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(frechet, "_BATCH", 4)
    torch.save(random_inception().state_dict(), tmp_path / "inception.pth")
    (tmp_path / "images").mkdir()
    for i in range(4):
        pixels = rng.integers(0, 256, size=(40, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    folder, config = imported
    config.data.update(
        {"source": "folder", "folder": str(tmp_path / "images"), "val_fraction": 1.0}
    )
    inception = tmp_path / "inception.pth"
    evaluate(folder, data=config.data, inception=inception, protocol=protocol)
    text = capsys.readouterr().out
    figures = json.loads((folder / "evaluation.json").read_text())
    assert figures["images"] == 4
    assert figures[f"rfid_{protocol}"] > 0
    assert 1.0 <= figures[f"rfid_{protocol}_inception_score"] <= 4.0
    assert 0.0 <= figures[f"rfid_{protocol}_precision"] <= 1.0
    assert f"rFID ({protocol})" in text and "not FID" in text
    assert "shorter side to 32 by Lanczos, centre crop to 32" in text
    assert "4 held-out images of folder" in text.replace("\n", " ")
    with pytest.raises(UserError, match="--protocol=other"):
        evaluate(folder, inception=inception, protocol="other")


def test_training_starts_from_what_was_imported(imported, tmp_path, data_dir):
    folder, config = imported
    config.start_from = str(folder)
    config.loss.perceptual_weight = 0.0
    config.data.source = "emoji"
    config.data.dir = data_dir
    state = tokenizer_job(config, tmp_path / "run", jax.random.key(0)).init()
    wanted = load(folder).variables["params"]
    chex.assert_trees_all_equal(state.generator.params, wanted)
    chex.assert_trees_all_equal(state.generator.ema_params, wanted)
    chex.assert_trees_all_equal(state.discriminator.params, read_group(folder, "discriminator"))
    # What was drawn into is not read again: the run has its own weights by then.
    (tmp_path / "run" / "checkpoints" / "5").mkdir(parents=True)
    fresh = tokenizer_job(config, tmp_path / "run", jax.random.key(0)).init()
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(fresh.generator.params, wanted)
    shutil.rmtree(tmp_path / "run")
    config.data.resolution = 64
    tokenizer_job(config, tmp_path / "run", jax.random.key(0))
    config.model.attn_resolutions = (16,)
    with pytest.raises(UserError, match=r'add --config.model.attn_resolutions="\(\)"'):
        tokenizer_job(config, tmp_path / "run", jax.random.key(0))
    config.model.attn_resolutions = ()
    config.model.ch = 64
    with pytest.raises(UserError, match=r"does not fit this config(.|\n)*of another shape"):
        tokenizer_job(config, tmp_path / "run", jax.random.key(0))


@pytest.mark.parametrize("scan", [False, True])
def test_a_prior_starts_from_another_of_its_shape(tmp_path, data_dir, scan):
    tokenizer = make_tokenizer()
    write(tokenizer, tmp_path / "tokenizer")
    prior = make_prior(tokenizer, "causal")
    prior.config.tokenizer = str(tmp_path / "tokenizer")
    prior.config.phases.prior = 1
    config = prior.config.copy_and_resolve_references()
    config.start_from = str(tmp_path / "prior")
    config.prior.scan = scan
    config.data.dir = data_dir
    config.data.batch_size = 8
    with prior.config.unlocked():
        prior.config.codes.classes = open_source(config.data).class_names
    count = len(prior.config.codes.classes)
    rows = np.arange((count + 1) * 32, dtype=np.float32).reshape(count + 1, 32)
    params = prior.params | {"labels": {"embedding": rows}}
    module = prior.module.clone(classes=count)
    write(TrainedPrior(prior.config, tokenizer, module, params, 1), tmp_path / "prior")
    state = prior_job(config, tmp_path / "run", jax.random.key(0)).init()
    _, started = unstack(module.clone(scan=scan), jax.device_get(state.prior.params))
    chex.assert_trees_all_equal(started, jax.device_get(params))

"""Comparison of sets of images: cached statistics, distances, and the evaluation by them."""

import dataclasses
import json
import shutil

import chex
import grain
import jax
import numpy as np
import pytest
import torch
from PIL import Image
from small import make_prior, make_tokenizer, write
from torch_inception import random_inception
from torch_models import VQGAN, PatchGAN, randomise

from vq_jax import config as configs
from vq_jax.data.sources import Splits
from vq_jax.errors import UserError
from vq_jax.interop.weights import read_group
from vq_jax.modalities import Network, image_networks, open_source
from vq_jax.models.transformer import unstack
from vq_jax.prior import TrainedPrior
from vq_jax.runs import load_tokenizer as load
from vq_jax.tasks import sets
from vq_jax.tasks.evaluate import evaluate
from vq_jax.tasks.evaluate_prior import _compare_all
from vq_jax.tasks.import_weights import import_weights
from vq_jax.tasks.job import Evaluation
from vq_jax.tasks.sets import cached_statistics, compare, compute_statistics
from vq_jax.tasks.train_prior import prior_job
from vq_jax.tasks.train_tokenizer import tokenizer_job
from vq_jax.training.checkpoint import Checkpoints


@pytest.fixture
def colour_network(monkeypatch, tmp_path):
    """A network whose features are mean colours, and a list of its batch sizes."""
    monkeypatch.setenv("VQ_JAX_CACHE", str(tmp_path / "cache"))
    batch_sizes = []

    def features(images):
        batch_sizes.append(len(images))
        return images.reshape(len(images), -1, 3).mean(1).astype(np.float32)

    return Network("fid_test", "FID (test)", "mean colours", "1", features), batch_sizes


def batches(images, size=7):
    """Returns a function that starts the images from the beginning, in batches."""
    return lambda: (images[i : i + size] for i in range(0, len(images), size))


def test_statistics_are_cached_under_a_hash_of_the_pixels_and_the_network(colour_network, rng):
    network, batch_sizes = colour_network
    images = rng.integers(0, 256, size=(20, 4, 4, 3), dtype=np.uint8)
    first = cached_statistics(network, batches(images))
    assert sum(batch_sizes) == 20
    again = cached_statistics(network, batches(images, size=3))
    assert sum(batch_sizes) == 20  # the network was not called
    np.testing.assert_array_equal(again.statistics.scatter, first.statistics.scatter)
    np.testing.assert_array_equal(again.features, first.features)
    images[13, 2, 2, 1] ^= 1
    cached_statistics(network, batches(images))
    assert sum(batch_sizes) == 40
    cached_statistics(dataclasses.replace(network, digest="2"), batches(images))
    assert sum(batch_sizes) == 60


def test_damaged_cached_statistics_are_computed_again(colour_network, rng):
    network, batch_sizes = colour_network
    images = rng.integers(0, 256, size=(20, 4, 4, 3), dtype=np.uint8)
    first = cached_statistics(network, batches(images))
    (path,) = sets.cache_folder().iterdir()
    path.write_bytes(path.read_bytes()[:100])
    again = cached_statistics(network, batches(images))
    assert sum(batch_sizes) == 40
    np.testing.assert_array_equal(again.statistics.mean, first.statistics.mean)


def test_the_distance_of_equal_sets_is_0_and_of_shifted_sets_the_squared_shift(colour_network, rng):
    network, _ = colour_network
    images = rng.integers(50, 200, size=(40, 4, 4, 3), dtype=np.uint8)
    real = compute_statistics(network, batches(images)())
    assert compare(network, real, real)["fid_test"] == pytest.approx(0.0, abs=1e-6)
    shifted = compute_statistics(network, batches(images + np.uint8(10))())
    assert compare(network, real, shifted)["fid_test"] == pytest.approx(300.0, rel=1e-5)


def test_a_limited_number_of_features_is_kept_from_the_whole_set(colour_network, rng, monkeypatch):
    monkeypatch.setattr(sets, "KEPT", 10)
    images = rng.integers(0, 256, size=(20, 4, 4, 3), dtype=np.uint8)
    found = compute_statistics(colour_network[0], batches(images)())
    assert len(found.features) == 10 and found.statistics.count == 20
    # The kept features come from all of a sorted set.
    steps = np.repeat(np.arange(200, dtype=np.uint8), 4 * 4 * 3).reshape(200, 4, 4, 3)
    kept = compute_statistics(colour_network[0], batches(steps)()).features[:, 0]
    assert len(set(kept)) == 10 and kept.min() < 60 and kept.max() > 140
    with pytest.raises(UserError, match="two examples"):
        compute_statistics(colour_network[0], batches(images[:1])())


def test_clean_resizing_is_bicubic_interpolation_of_floats(rng):
    image = rng.integers(80, 170, size=(300, 500, 3), dtype=np.uint8)
    image[:100] = 0
    image[100:120] = 255
    found = image_networks._resize_clean(image)
    assert found.shape == (299, 299, 3) and found.dtype == np.float32
    rounded = Image.fromarray(image).resize((299, 299), Image.Resampling.BICUBIC)
    assert found.min() == 0 and found.max() == 255  # clipped: bicubic interpolation overshoots
    assert np.abs(found - np.asarray(rounded)).max() < 1.5  # Pillow rounds uint8 images twice
    assert (found != found.round()).any()


def test_the_inception_score_does_not_depend_on_the_order_of_samples(colour_network, monkeypatch):
    """Samples sorted by class: unshuffled, each part of the score would have few classes."""
    one_hot = np.repeat(np.eye(100, dtype=np.float32), 100, axis=0)
    network = dataclasses.replace(
        colour_network[0], probabilities=lambda rows: one_hot[: len(rows)]
    )
    images = np.zeros((10_000, 1, 1, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(10_000) % 251
    monkeypatch.setattr(sets, "_BATCH", 10_000)
    made = compute_statistics(network, batches(images)(), classes=True)
    assert made.probabilities.shape == (10_000, 100)
    score = compare(network, made, made)["fid_test_inception_score"]
    assert score == pytest.approx(100.0, rel=0.02)


def test_samples_are_compared_with_all_training_images(colour_network):
    network, batch_sizes = colour_network
    prior = make_prior(make_tokenizer(), "masked")
    images = [{"x": np.full((16, 16, 3), 12 * i, np.uint8), "label": i % 3} for i in range(20)]
    evaluation = Evaluation(prior, Splits(images, images, ()), None, None, [network], count=10)
    results, count, real = _compare_all(evaluation, network)
    assert count == 10
    assert real == 20 and sum(batch_sizes) == 30
    assert results.keys() == {"gfid_test"} and results["gfid_test"] > 0


@pytest.fixture(scope="module")
def imported_folder(tmp_path_factory):
    """The folder of an imported VQGAN with its discriminator, with random weights."""
    tmp_path = tmp_path_factory.mktemp("imported")
    model = randomise(VQGAN(mults=(1, 2, 1), attended=()))
    discriminator = randomise(PatchGAN(n_layers=1))
    state = model.state_dict()
    state |= {f"loss.discriminator.{k}": v for k, v in discriminator.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "x.ckpt")
    import_weights(tmp_path / "x.ckpt", tmp_path / "imported")
    config = configs.load(tmp_path / "imported" / "config.json")
    config.data.resolution = 32
    config.data.batch_size = 8
    configs.save(config, tmp_path / "imported" / "config.json")
    return tmp_path / "imported"


@pytest.fixture
def imported(imported_folder):
    """The folder of an imported tokenizer, and its config."""
    return imported_folder, configs.load(imported_folder / "config.json")


@pytest.mark.parametrize("protocol", image_networks.PROTOCOLS)
def test_evaluation_of_an_imported_tokenizer_reports_the_protocol(
    imported, protocol, tmp_path, rng, monkeypatch, capsys
):
    monkeypatch.setenv("VQ_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sets, "_BATCH", 4)
    monkeypatch.setattr(image_networks, "BATCH", 4)
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
    output = capsys.readouterr().out
    results = json.loads((folder / "evaluation.json").read_text())
    assert results["images"] == 4
    assert results[f"rfid_{protocol}"] > 0
    assert 1.0 <= results[f"rfid_{protocol}_inception_score"] <= 4.0
    assert 0.0 <= results[f"rfid_{protocol}_precision"] <= 1.0
    assert f"rFID ({protocol})" in output and "not FID" in output
    assert "shorter side to 32 by Lanczos, centre crop to 32" in output
    assert "4 held-out images of folder" in output.replace("\n", " ")
    with pytest.raises(UserError, match="protocol is 'other'"):
        evaluate(folder, inception=inception, protocol="other")


def test_training_starts_from_imported_weights_that_fit_its_config(imported, tmp_path, data_dir):
    folder, config = imported
    config.start_from = str(folder)
    config.loss.perceptual_weight = 0.0
    config.data.source = "emoji"
    config.data.dir = data_dir
    state = tokenizer_job(config, tmp_path / "run", jax.random.key(0)).init()
    expected = load(folder).variables["params"]
    chex.assert_trees_all_equal(state.generator.params, expected)
    chex.assert_trees_all_equal(state.generator.ema_params, expected)
    chex.assert_trees_all_equal(state.discriminator.params, read_group(folder, "discriminator"))
    # A run with a checkpoint does not read the imported weights.
    (tmp_path / "run" / "checkpoints" / "5").mkdir(parents=True)
    fresh = tokenizer_job(config, tmp_path / "run", jax.random.key(0)).init()
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(fresh.generator.params, expected)
    shutil.rmtree(tmp_path / "run")
    config.data.resolution = 64
    tokenizer_job(config, tmp_path / "run", jax.random.key(0))
    config.model.attn_resolutions = (16,)
    with pytest.raises(UserError, match=r'set model.attn_resolutions="\(\)"'):
        tokenizer_job(config, tmp_path / "run", jax.random.key(0))
    config.model.attn_resolutions = ()
    config.model.ch = 64
    with pytest.raises(UserError, match=r"does not fit this config(.|\n)*wrong shape"):
        tokenizer_job(config, tmp_path / "run", jax.random.key(0))


@pytest.mark.parametrize("scan", [False, True])
def test_a_prior_starts_from_the_weights_of_another(tmp_path, data_dir, scan, capsys):
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
        prior.config.codes.classes = open_source(config).class_names
    count = len(prior.config.codes.classes)
    rows = np.arange((count + 1) * 32, dtype=np.float32).reshape(count + 1, 32)
    params = prior.params | {"labels": {"embedding": rows}}
    module = prior.module.clone(classes=count)
    write(TrainedPrior(prior.config, tokenizer, module, params, 1), tmp_path / "prior")
    state = prior_job(config, tmp_path / "run", jax.random.key(0)).init()
    _, started = unstack(module.clone(scan=scan), jax.device_get(state.prior.params))
    chex.assert_trees_all_equal(started, jax.device_get(params))
    assert "another tokenizer" not in capsys.readouterr().err

    # A run in training starts another, whose layers may be stacked as well.
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        positions = iter(grain.MapDataset.range(3).to_iter_dataset())
        checkpoints.save(1, state.split(), positions)
    configs.save(config, tmp_path / "run" / configs.FILE)
    config.start_from = str(tmp_path / "run")
    state = prior_job(config, tmp_path / "next", jax.random.key(1)).init()
    _, started = unstack(module.clone(scan=scan), jax.device_get(state.prior.params))
    chex.assert_trees_all_equal(started, jax.device_get(params))
    config.start_from = str(tmp_path / "prior")

    # The tokenizer may have been trained further since; this is said.
    write(make_tokenizer(seed=1), tmp_path / "tokenizer")
    state = prior_job(config, tmp_path / "last", jax.random.key(0)).init()
    _, started = unstack(module.clone(scan=scan), jax.device_get(state.prior.params))
    chex.assert_trees_all_equal(started, jax.device_get(params))
    assert "trained on the codes of another tokenizer" in capsys.readouterr().err

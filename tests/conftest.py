"""Tests run on four CPU devices, with no network and nothing written outside their own folders."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)
os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling takes most of the suite's time. The program's own runs, in processes of their own, keep
# every optimization.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import jax
import numpy as np
import pytest

from vq_jax.config import base
from vq_jax.data.sources import open_source

DEVICES = 4


@pytest.fixture(scope="session", autouse=True)
def _private_folders(tmp_path_factory):
    """A cache of the session's own, so that no test sees what another run left behind."""
    os.environ["VQ_JAX_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["TFDS_DATA_DIR"] = str(tmp_path_factory.mktemp("tfds"))
    assert jax.device_count() == DEVICES


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Where the session's prepared data sets lie."""
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def emoji(data_dir):
    """The embedded data set, prepared once."""
    config = base("vqvae")
    config.data.dir = data_dir
    return open_source(config.data)


@pytest.fixture(scope="session")
def emoji_images(emoji):
    """16 emoji, float32 [16, 32, 32, 3] in [-1, 1]."""
    from vq_jax.data.pipeline import train_batches

    config = base("vqvae")
    config.data.batch_size = 16
    return next(train_batches(emoji.train, config.data, seed=0))["image"]


@pytest.fixture
def rng():
    return np.random.default_rng(0)

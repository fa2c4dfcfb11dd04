"""Tests run on four CPU devices, with no network and nothing written outside their own folders.

Compiling takes most of the suite's time, so in these processes XLA leaves most optimizations out;
`pytest --optimized` does not. The processes that tests start are compiled as a user's are: see
`running.environment`.
"""

import os
import sys
from importlib.metadata import version
from pathlib import Path

OPTIMIZED = "--optimized" in sys.argv or os.environ.get("VQ_JAX_TESTS_OPTIMIZED") == "1"
if OPTIMIZED:
    os.environ["VQ_JAX_TESTS_OPTIMIZED"] = "1"  # of xdist's workers, whose arguments are others
XLA_FLAGS = ["--xla_force_host_platform_device_count=4"]
if not OPTIMIZED:
    XLA_FLAGS.append("--xla_cpu_parallel_codegen_split_count=1")
    if version("jaxlib") < "0.11":  # later ones do not know it, and end the process
        XLA_FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *XLA_FLAGS])
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["MPLBACKEND"] = "Agg"

import jax
import numpy as np
import pytest
from filelock import FileLock

from vq_jax.config import base
from vq_jax.data.sources import open_source

TESTS = Path(__file__).parent
DEVICES = 4
# What takes longest comes first, so that no worker is left alone with it at the end.
SLOW_FIRST = (
    "tasks/test_program.py",
    "tasks/test_prior_program.py",
    "training/test_steps.py",
    "tasks/test_import.py",
    "tasks/test_import_forms.py",
    "tasks/test_compress.py",
    "test_codec.py",
    "tasks/test_frechet.py",
)


def pytest_addoption(parser):
    parser.addoption(
        "--optimized",
        action="store_true",
        help="compile all tests as a user's runs are, which takes twice as long",
    )


def pytest_collection_modifyitems(items):
    place = {name: i for i, name in enumerate(SLOW_FIRST)}

    def rank(item):
        return place.get(str(item.path.relative_to(TESTS)), len(place))

    items.sort(key=rank)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory, worker_id):
    """A folder that all workers of a session share."""
    folder = tmp_path_factory.getbasetemp()
    return folder if worker_id == "master" else folder.parent


@pytest.fixture(scope="session", autouse=True)
def _private_folders(tmp_path_factory, shared_folder):
    """Caches of the session's own, so that no test sees what another run left behind.

    Compiled programs are shared by all workers and by the processes that tests start, as a user's
    are by one command and the next.
    """
    os.environ["VQ_JAX_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["TFDS_DATA_DIR"] = str(tmp_path_factory.mktemp("tfds"))
    jax.config.update("jax_disable_most_optimizations", not OPTIMIZED)
    compiled = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(shared_folder / "compiled"))
    jax.config.update("jax_compilation_cache_dir", compiled)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    assert jax.device_count() == DEVICES


@pytest.fixture(scope="session")
def data_dir(shared_folder):
    """Where the session's prepared data sets lie."""
    return str(shared_folder / "data")


@pytest.fixture(scope="session")
def emoji(data_dir, shared_folder):
    """The embedded data set, prepared once."""
    config = base("vqvae")
    config.data.dir = data_dir
    with FileLock(shared_folder / "data.lock"):
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

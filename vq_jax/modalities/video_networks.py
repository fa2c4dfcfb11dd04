"""Networks that compare sets of clips: EfficientNet-lite0 of frames and of pairs of frames, and FVD's I3D."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from vq_jax.data.images import to_float
from vq_jax.data.pipeline import pad_rows
from vq_jax.errors import UserError
from vq_jax.interop.i3d import load_i3d
from vq_jax.modalities.base import Network
from vq_jax.modalities.image_networks import efficientnet_network
from vq_jax.models import i3d

_EVERY = 4  # frames between those whose features are compared
_APART = 2  # frames between those of a pair


def frame_networks() -> list[Network]:
    """Makes the networks of frames and of pairs, the latter with one row of features for each clip.

    Raises:
      UserError: the weights are not installed.
    """
    image = efficientnet_network()

    def of_frames(clips: np.ndarray) -> np.ndarray:
        frames = clips[:, ::_EVERY]
        return image.features(frames.reshape(-1, *frames.shape[2:]))

    def of_pairs(clips: np.ndarray) -> np.ndarray:
        first = (clips.shape[1] - 1) // 2
        last = min(first + _APART, clips.shape[1] - 1)
        rows = [image.features(np.ascontiguousarray(clips[:, i])) for i in (first, last)]
        return np.concatenate(rows, axis=1)

    return [
        dataclasses.replace(
            image,
            key="frame_frechet",
            heading="Frechet distance of frames (EfficientNet-lite0; not FVD)",
            description=f"every {_EVERY}th frame, {image.description}",
            features=of_frames,
        ),
        dataclasses.replace(
            image,
            key="frame_pair_frechet",
            heading="Frechet distance of pairs of frames (EfficientNet-lite0; not FVD)",
            description=f"two frames of each clip, {_APART} apart, {image.description}",
            features=of_pairs,
        ),
    ]


_BATCH = 8  # clips


def fvd_network(path: str) -> Network:
    """Makes the features of the Frechet video distance (Unterthiner et al. 2018).

    Args:
      path: of I3D's weights.

    Raises:
      UserError: the weights cannot be read.
    """
    params, digest = load_i3d(Path(path))
    compiled = jax.jit(i3d.features)

    def features(clips: np.ndarray) -> np.ndarray:
        found = []
        if clips.shape[1] < i3d.LEAST_FRAMES:
            raise UserError(
                f"FVD needs clips of {i3d.LEAST_FRAMES} frames or more, not {clips.shape[1]}"
            )
        for start in range(0, len(clips), _BATCH):
            part = clips[start : start + _BATCH]
            count, part = len(part), pad_rows(part, _BATCH)
            part = to_float(part) if part.dtype == np.uint8 else part
            part = np.repeat(part, 3, axis=-1) if part.shape[-1] == 1 else part
            found.append(np.asarray(compiled(params, part))[:count])
        return np.concatenate(found)

    return Network(
        key="fvd_i3d",
        heading="FVD (I3D of Kinetics-400)",
        description=f"to 224x224, bilinear, logits averaged over time; weights {digest[:8]}",
        digest=digest,
        features=features,
    )

"""Networks that compare sets of clips: EfficientNet-lite0 of frames, and of pairs of frames."""

import dataclasses

import numpy as np

from vq_jax.modalities.base import Network
from vq_jax.modalities.image_networks import efficientnet_network

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

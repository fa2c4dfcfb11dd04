"""Edits clips with a prior over their codes: predict, interpolate, inpaint.

Clips are uint8 [T, H, W, C], of any length and size. A clip longer than the prior's is edited window by window, each
with frames of the one before. Frames and pixels that are given come back unchanged.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from vq_jax import modalities
from vq_jax.data.images import mirror_pad, to_uint8
from vq_jax.editing import blend, decode_one, encode_one, extrapolate, fill_grid
from vq_jax.errors import UserError, check_seed
from vq_jax.models.priors import sees_later
from vq_jax.prior import TrainedPrior

_MOST = 100_000  # frames of one call


def check_prior(prior: Any, *, after: bool = False) -> None:
    """Raises UserError unless it is a prior of clips.

    Args:
      prior: what was opened.
      after: whether it must see frames after those it samples.
    """
    if not isinstance(prior, TrainedPrior) or prior.modality is not modalities.MODALITIES["video"]:
        raise UserError("edits of videos need a prior of videos: open the run of one")
    if prior.tokenizer.strides is None or not any(prior.tokenizer.alone):
        raise UserError("edits of videos need a causal tokenizer")
    if after and not sees_later(prior.module):
        raise UserError(
            "this prior sees no later frames: train one that is 'masked' or 'random_order'; to continue a "
            "clip, predict"
        )


def _check(prior: TrainedPrior, clip: np.ndarray) -> None:
    channels = prior.tokenizer.config.data.channels
    if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != channels or 0 in clip.shape:
        raise UserError(
            f"the clip is {clip.dtype} {clip.shape}: make it uint8 [T, H, W, {channels}]"
        )


def _strides(prior: TrainedPrior) -> tuple[int, ...]:
    strides = prior.tokenizer.strides
    assert strides is not None  # `check_prior`
    return strides


def _padded(prior: TrainedPrior, frames: np.ndarray) -> np.ndarray:
    """Mirrors frames [T, H, W, ...] at their edges, up to sides that windows of the prior fit."""
    factor = _strides(prior)[1]
    window = prior.module.grid[1:]
    multiple, least = factor * max(1, min(window) // 2), factor * max(window)
    return np.moveaxis(mirror_pad(np.moveaxis(frames, 0, 2), multiple, least), 2, 0)


def _frames(prior: TrainedPrior) -> int:
    """Number of frames of the prior's clips."""
    frames: int = prior.tokenizer.spec.shape[0]
    return frames


def _spans(prior: TrainedPrior) -> list[slice]:
    """The frames of each position along time."""
    step = _strides(prior)[0]
    return [slice(0, 1), *(slice(i, i + step) for i in range(1, _frames(prior), step))]


def predict(prior: TrainedPrior, clip: np.ndarray, frames: int, **how: Any) -> np.ndarray:
    """Continues a clip.

    Each window of the prior is given about half of its positions, which are the last frames so far, encoded
    as a clip of their own.

    Args:
      prior: of clips.
      clip: uint8 [T, H, W, C], one frame or more.
      frames: number of frames to append.
      **how: label, candidates, seed and more; see `editing.fill_grid`.

    Returns:
      uint8 [T + frames, H, W, C]; the first T are those of `clip`.

    Raises:
      UserError: the number of frames is out of range, or the prior cannot do it.
    """
    check_prior(prior)
    _check(prior, clip)
    if not 1 <= frames <= _MOST:
        raise UserError(f"frames is {frames}: use 1 to {_MOST:,}")
    seed, (height, width) = check_seed(how.pop("seed", 0)), clip.shape[1:3]
    spans = _spans(prior)
    if len(spans) < 2:
        raise UserError(f"this prior's clips have {_frames(prior)} frames: none to append")
    result, wanted, rounds = clip, len(clip) + frames, 0
    most = min(len(spans) // 2 + 1, len(spans) - 1)
    while len(result) < wanted:
        given = max(i for i in range(1, most + 1) if spans[i - 1].stop <= len(result))
        count = spans[given - 1].stop
        known = encode_one(prior, _padded(prior, result[-count:]))
        codes = np.zeros((len(spans), *known.shape[1:]), np.int32)
        codes[:given] = known
        free: np.ndarray = np.ones(codes.shape[:3], bool)
        free[:given] = False
        drawn = decode_one(prior, fill_grid(prior, codes, free, seed=seed + 10_000 * rounds, **how))
        new = to_uint8(drawn[count:])[:, :height, :width]
        result, rounds = np.concatenate([result, new]), rounds + 1
    return result[:wanted]


def interpolate(prior: TrainedPrior, first: np.ndarray, last: np.ndarray, **how: Any) -> np.ndarray:
    """Draws the frames between two.

    The prior is given the codes of a clip that shows the first frame, and then the last one: those of its
    first and its last position.

    Args:
      prior: masked or random_order.
      first, last: uint8 [H, W, C].
      **how: see `predict`.

    Returns:
      uint8 [T, H, W, C], T the number of frames of the prior's clips.
    """
    check_prior(prior, after=True)
    if first.shape != last.shape:
        sizes = [f"{image.shape[1]}x{image.shape[0]}" for image in (first, last)]
        raise UserError(
            f"the first frame is {sizes[0]} pixels and the last {sizes[1]}: make them equal"
        )
    spans = _spans(prior)
    if len(spans) < 3:
        raise UserError(
            f"clips of {_frames(prior)} frames have none between the first and the last"
        )
    middle = spans[-1].start
    clip = np.stack([first] * (middle // 2) + [last] * (_frames(prior) - middle // 2))
    _check(prior, clip)
    height, width = first.shape[:2]
    given = encode_one(prior, _padded(prior, clip))
    free: np.ndarray = np.ones(given.shape[:3], bool)
    free[[0, -1]] = False
    drawn = to_uint8(decode_one(prior, fill_grid(prior, given, free, **how)))[:, :height, :width]
    return np.concatenate([first[None], drawn[1:-1], last[None]])


def inpaint(prior: TrainedPrior, clip: np.ndarray, mask: np.ndarray, **how: Any) -> np.ndarray:
    """Replaces what is under the mask; every other pixel stays as it is.

    Args:
      prior: of clips; a causal one does not see what comes after a masked position.
      clip: uint8 [T, H, W, C].
      mask: bool [T, H, W], or [H, W] for all frames, True where to draw.
      **how: see `predict`.

    Returns:
      uint8, shaped as the clip.

    Raises:
      UserError: the mask is of another size, or the prior cannot do it.
    """
    check_prior(prior)
    _check(prior, clip)
    if mask.dtype != bool:
        raise UserError(f"the mask is {mask.dtype}: make it bool, True where to draw")
    if mask.shape not in (clip.shape[:3], clip.shape[1:3]):
        raise UserError(
            f"the mask has shape {mask.shape} and the clip {clip.shape[:3]}: make the mask [H, W] or "
            "[T, H, W]"
        )
    mask = np.broadcast_to(mask, clip.shape[:3])
    if mask.all():
        raise UserError("the mask covers the whole clip: sample instead")
    seed, size = check_seed(how.pop("seed", 0)), _frames(prior)
    result, left = clip.copy(), mask.copy()
    for i, start in enumerate(_starts(len(clip), size)):
        here = slice(start, start + size)
        if left[here].any():
            drawn = _inpaint(prior, result[here], left[here], seed=seed + 10_000 * i, **how)
            result[here] = np.where(left[here][..., None], drawn, result[here])
            left[here] = False
    return result


def _starts(length: int, size: int) -> Iterator[int]:
    """Yields where windows in time begin, half a window apart."""
    yield from range(0, max(0, length - size), max(1, size // 2))
    yield max(0, length - size)


def _inpaint(prior: TrainedPrior, clip: np.ndarray, mask: np.ndarray, **how: Any) -> np.ndarray:
    """Draws what is under the mask of one window, which may be shorter than the prior's clips."""
    count, height, width = mask.shape
    more = [(0, _frames(prior) - count), *[(0, 0)] * 3]
    image = _padded(prior, np.pad(clip, more, mode="edge"))
    hidden = _padded(prior, np.pad(mask, more[:3], mode="edge"))
    given = encode_one(prior, _without(image, hidden))
    factor = _strides(prior)[1]
    rows, columns = given.shape[1:3]
    cells: np.ndarray = np.asarray(
        hidden.reshape(len(hidden), rows, factor, columns, factor).any(axis=(2, 4))
    )
    free: np.ndarray = np.stack([cells[span].any(axis=0) for span in _spans(prior)])
    drawn = decode_one(prior, fill_grid(prior, given, free, **how))
    frames = [
        to_uint8(y) if h.all() or not h.any() else blend(y, x, h)
        for y, x, h in zip(drawn, image, hidden, strict=True)
    ]
    return np.stack(frames)[:count, :height, :width]


def _without(image: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Fills what is hidden from around it, and a frame that is all hidden from the nearest other.

    The encoder also sees pixels around a code: a hole there would change the code.
    """
    everywhere: np.ndarray = np.asarray(hidden.all(axis=(1, 2)))
    shown = np.flatnonzero(~everywhere)
    if not len(shown):
        return np.full_like(image, 128)
    found = image.copy()
    for t in shown:
        if hidden[t].any():
            found[t] = np.round(extrapolate(image[t].astype(np.float64), ~hidden[t]))
    for t in np.flatnonzero(everywhere):
        found[t] = found[shown[np.abs(shown - t).argmin()]]
    return found

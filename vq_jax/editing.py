"""Edits images with a prior over their codes: inpaint, outpaint, upscale, restore, variations.

All edits sample codes on the image's grid. A grid larger than the prior's is sampled window by window,
each given the codes sampled before, and decoded as a whole, so that windows leave no seams. Images are
uint8 [H, W, C], of any size.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import ndimage

from vq_jax import modalities
from vq_jax.data.degrade import resize
from vq_jax.data.images import mirror_pad, over_white, to_float, to_uint8
from vq_jax.errors import UserError, check_seed
from vq_jax.prior import TrainedPrior
from vq_jax.quantizers.multiscale import area_matrix

# Pixels over which the colours of what is drawn are blended with those of its surroundings.
_SEAM = 4.0
_MOST = 1000  # largest number of variations of one call
_CANVAS = 2**24  # largest number of pixels of an extended image


def check_prior(prior: Any) -> int:
    """Returns the pixels that a code spans along a side, of a pyramid a code of its last level.

    Raises:
      UserError: it is no prior of images with a grid or a pyramid of codes.
    """
    if not isinstance(prior, TrainedPrior):
        raise UserError("edits need a prior: open the run of one")
    tokenizer = prior.tokenizer
    images = prior.modality is modalities.MODALITIES["image"]
    if images and tokenizer.codes.grids:
        return tokenizer.spec.shape[0] // tokenizer.codes.grids[-1][0]
    if not images or tokenizer.strides is None or len(set(tokenizer.strides)) != 1:
        raise UserError(
            "edits need a tokenizer of images with a grid of codes, for images of any size, or a pyramid"
        )
    return tokenizer.strides[0]


def _check(prior: TrainedPrior, image: np.ndarray, condition: str, needs: str) -> int:
    """Returns the pixels that a code spans along a side.

    Raises:
      UserError: this prior cannot edit this image.
    """
    factor = check_prior(prior)
    if image.dtype != np.uint8 or image.ndim != 3:
        raise UserError(f"the image is {image.dtype} {image.shape}: make it uint8 [H, W, C]")
    if prior.config.condition.name != condition:
        raise UserError(
            f"this prior was trained with condition {prior.config.condition.name!r}, and this edit "
            f"needs {condition!r}: {needs}"
        )
    height, width = image.shape[:2]
    if min(height, width) < factor:
        raise UserError(
            f"the image is {width}x{height} pixels, smaller than one code, {factor}x{factor}"
        )
    side = prior.tokenizer.spec.shape[0]
    pyramid = bool(prior.tokenizer.codes.grids)
    if pyramid and max(height, width) > side:
        raise UserError(
            f"the image is {width}x{height} pixels, and this tokenizer takes images of up to {side}x{side}: "
            "make it smaller"
        )
    if pyramid and condition != "none":
        raise UserError(
            f"{condition} needs a tokenizer of images of any size, with a grid of codes"
        )
    return factor


def _starts(side: int, window: int, share: int) -> list[int]:
    """Returns where windows begin along a side: about half a window apart, at multiples of `share`."""
    step = max(share, window // 2 // share * share)
    return [*range(0, side - window, step), side - window]


def fill_grid(
    prior: TrainedPrior,
    given: np.ndarray,
    free: np.ndarray,
    *,
    condition: np.ndarray | None = None,
    label: Any = None,
    candidates: int = 1,
    seed: int = 0,
    **how: Any,
) -> np.ndarray:
    """Samples the free codes of one image or clip, on a grid of any size.

    Args:
      prior: the prior.
      given: int32 [*grid, *code_shape], no smaller than the prior's grid along any axis.
      free: bool [*grid].
      condition: codes of the condition, which cover the same image, if the prior has one.
      label: a class, its number, or None.
      candidates: number of candidates, of which the likeliest is kept.
      seed: of the samples.
      **how: see `TrainedPrior.fill`.

    Returns:
      int32 codes shaped as `given`.
    """
    if candidates < 1:
        raise UserError(f"candidates is {candidates}: use 1 or more")
    window = prior.module.grid
    codes = np.repeat(np.asarray(given, np.int32)[None], candidates, axis=0)
    free, likelihood = free.copy(), np.zeros(candidates)
    share = _share(prior)
    for i, corner in enumerate(_windows(free, window, share)):
        sides = list(zip(corner, window, strict=True))
        here = tuple(slice(start, start + size) for start, size in sides)
        worse = None
        if condition is not None:
            part = condition[tuple(slice(a // share, (a + size) // share) for a, size in sides)]
            worse = np.repeat(part[None], candidates, axis=0)
        drawn, gained = prior.fill(
            codes[:, *here],
            np.repeat(free[here][None], candidates, axis=0),
            condition=worse,
            label=label,
            seed=seed + i,
            **how,
        )
        codes[:, *here] = drawn
        free[here] = False
        likelihood += gained
    return codes[likelihood.argmax()]


def _windows(free: np.ndarray, window: tuple[int, ...], share: int) -> Iterator[tuple[int, ...]]:
    """Yields the corners of windows, row by row, that have free codes."""
    axes = zip(free.shape, window, strict=True)
    for corner in itertools.product(*(_starts(side, size, share) for side, size in axes)):
        if free[tuple(slice(a, a + size) for a, size in zip(corner, window, strict=True))].any():
            yield corner


def _share(prior: TrainedPrior) -> int:
    """Number of positions along a side that a position of the condition covers."""
    return prior.module.grid[0] // prior.module.condition[0] if prior.module.condition else 1


def encode_one(prior: TrainedPrior, image: np.ndarray) -> np.ndarray:
    """Encodes an image or clip, uint8, whose sizes the tokenizer takes."""
    return np.asarray(prior.tokenizer.encode(to_float(image)[None]))[0]


def decode_one(prior: TrainedPrior, codes: np.ndarray) -> np.ndarray:
    """Decodes the codes of an image or clip, to floats."""
    return np.asarray(prior.tokenizer.decode(codes[None]))[0]


def _multiple(prior: TrainedPrior, factor: int) -> tuple[int, int]:
    """Returns what an image's sides must be multiples of, so that windows are aligned, and the least side."""
    if prior.tokenizer.codes.grids:
        side = prior.tokenizer.spec.shape[0]
        return side, side
    window = min(prior.module.grid)
    return factor * max(1, window // 2), factor * max(prior.module.grid)


def free_codes(prior: TrainedPrior, hidden: np.ndarray, factor: int) -> np.ndarray:
    """Returns which codes are under a mask: bool [*grid].

    A code is free if it spans a hidden pixel. One of the coarser levels of a pyramid is free if at least
    half of its pixels are hidden: what is given then keeps its colours and large shapes.

    Args:
      prior: of the codes.
      hidden: bool [H, W], in the sizes that the tokenizer takes.
      factor: pixels that a code spans along a side.
    """

    def shares(height: int, width: int) -> np.ndarray:
        rows, columns = (
            area_matrix(size, part)
            for size, part in zip(hidden.shape, (height, width), strict=True)
        )
        return rows @ hidden.astype(np.float32) @ columns.T

    grids = prior.tokenizer.codes.grids
    if not grids:
        height, width = (side // factor for side in hidden.shape)
        cells = hidden.reshape(height, factor, width, factor)
        return np.asarray(cells.any(axis=(1, 3)))
    half = 0.5 - 1e-6  # sums of shares are rounded
    levels = [shares(*grid) >= half for grid in grids[:-1]] + [shares(*grids[-1]) > 0]
    return np.concatenate([level.reshape(-1) for level in levels])


def extrapolate(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Fills unknown pixels smoothly from known ones, the nearest first.

    Args:
      values: float [H, W, C].
      known: bool [H, W], with at least one True.

    Returns:
      float [H, W, C], equal to `values` where known.
    """
    filled, done = np.where(known[..., None], values, 0.0), known.copy()
    sigma = 1.0
    while not done.all():
        weight = ndimage.gaussian_filter(known.astype(np.float64), sigma, truncate=2.0)
        blurred = np.stack(
            [
                ndimage.gaussian_filter(np.where(known, channel, 0.0), sigma, truncate=2.0)
                for channel in np.moveaxis(values.astype(np.float64), -1, 0)
            ],
            axis=-1,
        )
        reached = (weight > 1e-12) & ~done
        filled[reached] = blurred[reached] / weight[reached][:, None]
        done |= reached
        sigma *= 2.0
    return filled


def inpaint(prior: TrainedPrior, image: np.ndarray, mask: np.ndarray, **how: Any) -> np.ndarray:
    """Replaces what is under the mask; every other pixel stays as it is.

    Args:
      prior: without condition.
      image: uint8 [H, W, C], or with one more channel for opacity; what is drawn is opaque.
      mask: bool [H, W], True where to draw.
      **how: label, candidates, seed and more; see `fill_grid`.

    Returns:
      uint8, shaped as the image.

    Raises:
      UserError: the mask is of another size, or the prior cannot do it.
    """
    factor = _check(prior, image, "none", "name a prior without condition")
    channels = prior.tokenizer.config.data.channels
    if image.shape[-1] == channels + 1:
        opaque = np.full_like(image[..., channels:], 255)
        drawn = inpaint(prior, over_white(image, channels), mask, **how)
        return np.where(mask[..., None], np.concatenate([drawn, opaque], axis=-1), image)
    if mask.dtype != bool:
        raise UserError(f"the mask is {mask.dtype}: make it bool, True where to draw")
    if mask.shape != image.shape[:2]:
        sizes = [f"{shape[1]}x{shape[0]}" for shape in (mask.shape, image.shape)]
        raise UserError(f"the mask is {sizes[0]} pixels and the image {sizes[1]}: make them equal")
    if not mask.any():
        return image.copy()
    if mask.all():
        raise UserError("the mask covers the whole image: sample instead")
    padded = mirror_pad(image, *_multiple(prior, factor))
    hidden = mirror_pad(mask, *_multiple(prior, factor))
    # The encoder also sees pixels around a code: a hole there would change the code.
    plain = np.round(extrapolate(padded.astype(np.float64), ~hidden)).astype(np.uint8)
    given = encode_one(prior, plain)
    free = free_codes(prior, hidden, factor)
    drawn = decode_one(prior, fill_grid(prior, given, free, **how))
    result = blend(drawn, padded, hidden)[: image.shape[0], : image.shape[1]]
    return np.where(mask[..., None], result, image)


def blend(drawn: np.ndarray, image: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Adapts the colours of what is drawn to those around it.

    The tokenizer's error outside the mask is subtracted inside, fading with the distance from it.

    Args:
      drawn: float [H, W, C] in [-1, 1], the decoder's output.
      image: uint8 [H, W, C].
      hidden: bool [H, W], the mask, which is not everywhere.

    Returns:
      uint8 [H, W, C].
    """
    error = extrapolate(to_float(image) - drawn, ~hidden)
    near = np.exp(-((ndimage.distance_transform_edt(hidden) / _SEAM) ** 2))
    return to_uint8(drawn + error * near[..., None])


def outpaint(
    prior: TrainedPrior, image: np.ndarray, margins: tuple[int, int, int, int] | int, **how: Any
) -> np.ndarray:
    """Extends an image beyond its edges; the image itself stays as it is.

    Args:
      prior: without condition.
      image: uint8 [H, W, C], or with one more channel for opacity.
      margins: pixels to add at the top, right, bottom and left, or on every side.
      **how: see `fill_grid`.

    Returns:
      uint8 [top + H + bottom, left + W + right, C].
    """
    margins = (margins,) * 4 if isinstance(margins, int) else margins
    if len(margins) != 4 or min(margins) < 0 or not any(margins):
        raise UserError(
            f"margins are {', '.join(map(str, margins))}: give pixels to add at top, right, bottom, "
            "left, none below 0 and not all 0"
        )
    _check(prior, image, "none", "name a prior without condition")
    top, right, bottom, left = margins
    height, width = top + image.shape[0] + bottom, left + image.shape[1] + right
    if height * width > max(_CANVAS, 4 * image.shape[0] * image.shape[1]):
        raise UserError(
            f"margins make an image of {width}x{height} pixels: at most {_CANVAS:,} pixels, or four "
            "times those of the image, are possible"
        )
    canvas = np.pad(image, ((top, bottom), (left, right), (0, 0)), mode="edge")
    mask: np.ndarray = np.ones(canvas.shape[:2], bool)
    mask[top : top + image.shape[0], left : left + image.shape[1]] = False
    return inpaint(prior, canvas, mask, **how)


def upscale(
    prior: TrainedPrior, image: np.ndarray, factor: int | None = None, **how: Any
) -> np.ndarray:
    """Enlarges an image `factor` times; a prior of factor 2 enlarges by 4 in two rounds.

    Args:
      prior: with condition "upscale".
      image: uint8 [H, W, C].
      factor: a power of the prior's factor; None is the prior's factor.
      **how: see `fill_grid`.

    Returns:
      uint8 [factor * H, factor * W, C].
    """
    spans = _check(
        prior, image, "upscale", "name emoji-upscale, or train one with the recipe prior_upscale"
    )
    own = prior.config.condition.factor
    factor = own if factor is None else factor
    rounds = round(math.log(max(factor, 1), own))
    if factor < 2 or own**rounds != factor:
        raise UserError(f"factor is {factor}, and this prior enlarges by {own}: use a power of it")
    multiple, least = _multiple(prior, spans)
    for i in range(rounds):
        height, width = own * image.shape[0], own * image.shape[1]
        if prior.config.condition.enlarge:
            worse = mirror_pad(resize(image, height, width, enlarge=True), multiple, least)
        else:
            # Windows then begin where a code of the small image does.
            worse = mirror_pad(
                image, spans * max(1, prior.module.grid[0] // 2 // own), least // own
            )
        codes = _redraw(prior, worse, **how | {"seed": how.get("seed", 0) + 10_000 * i})
        image = to_uint8(decode_one(prior, codes))[:height, :width]
    return image


def restore(prior: TrainedPrior, image: np.ndarray, **how: Any) -> np.ndarray:
    """Removes noise, blur, JPEG artefacts and bad light from an image.

    Args:
      prior: with condition "restore".
      image: uint8 [H, W, C].
      **how: see `fill_grid`.

    Returns:
      uint8 [H, W, C].
    """
    factor = _check(
        prior, image, "restore", "name emoji-restore, or train one with the recipe prior_restore"
    )
    worse = mirror_pad(image, *_multiple(prior, factor))
    codes = _redraw(prior, worse, **how)
    return to_uint8(decode_one(prior, codes))[: image.shape[0], : image.shape[1]]


def _redraw(prior: TrainedPrior, worse: np.ndarray, **how: Any) -> np.ndarray:
    """Samples all codes of an image, given a degraded copy of it."""
    condition = encode_one(prior, worse)
    height, width = (_share(prior) * side for side in condition.shape[:2])
    given = np.zeros((height, width, *condition.shape[2:]), np.int32)
    everything: np.ndarray = np.ones((height, width), bool)
    return fill_grid(prior, given, everything, condition=condition, **how)


def variations(
    prior: TrainedPrior, image: np.ndarray, share: float, count: int, **how: Any
) -> np.ndarray:
    """Samples a share of an image's codes again, several times.

    They are at random places; of a pyramid, they are the last, which draw what is small.

    Args:
      prior: without condition.
      image: uint8 [H, W, C].
      share: of the codes, in (0, 1].
      count: number of variations.
      **how: see `fill_grid`.

    Returns:
      uint8 [count, H, W, C].
    """
    factor = _check(prior, image, "none", "name a prior without condition")
    if not 0 < share <= 1:
        raise UserError(f"share is {share}: use more than 0 and at most 1")
    if not 1 <= count <= _MOST:
        raise UserError(f"count is {count}: use 1 to {_MOST}")
    given = encode_one(prior, mirror_pad(image, *_multiple(prior, factor)))
    seed = check_seed(how.pop("seed", 0))
    results = []
    spec = prior.tokenizer.codes
    grid = given.shape[: len(spec.grid)]
    for i in range(count):
        if spec.grids:
            places = np.arange(math.prod(grid))[::-1]
        else:
            places = np.random.default_rng((seed, i)).permutation(math.prod(grid)).reshape(grid)
        free = np.asarray(places < max(1, round(share * places.size)))
        codes = fill_grid(prior, given, free, seed=seed + 10_000 * i, **how)
        results.append(to_uint8(decode_one(prior, codes))[: image.shape[0], : image.shape[1]])
    return np.stack(results)

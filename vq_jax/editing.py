"""Images changed through a prior over their codes: repaired, extended, enlarged, cleaned, varied.

All of them draw codes on the image's whole grid, window by window where it is larger than the prior's,
each window given what those before have drawn; the grid is decoded at once, so that windows leave no
seams. Images are uint8 [H, W, C], of any size and aspect.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import ndimage

from vq_jax.data.degrade import resize
from vq_jax.data.images import mirror_pad, over_white, to_float, to_uint8
from vq_jax.errors import UserError, check_seed
from vq_jax.prior import TrainedPrior

# Pixels over which what is drawn gives way to the light and colour of what it borders on.
_SEAM = 4.0
_MOST = 1000  # variations of one call
_CANVAS = 2**24  # pixels that an image may be extended to


def _check(prior: TrainedPrior, image: np.ndarray, condition: str, needs: str) -> int:
    """The pixels a code spans along a side, for a prior and an image that can be edited."""
    if not isinstance(prior, TrainedPrior):
        raise UserError("edits need a prior: vq_jax.load the run of one")
    if image.dtype != np.uint8 or image.ndim != 3:
        raise UserError(f"the image is {image.dtype} {image.shape}: make it uint8 [H, W, C]")
    factor = prior.tokenizer.factor
    if factor is None:
        raise UserError("edits need a tokenizer whose codes lie in a grid, for images of any size")
    if prior.config.condition.name != condition:
        raise UserError(
            f"this prior was trained with condition {prior.config.condition.name!r}, and this "
            f"needs {condition!r}: {needs}"
        )
    if min(image.shape[:2]) < factor:
        height, width = image.shape[:2]
        raise UserError(
            f"the image is {width}x{height} pixels, smaller than one code, {factor}x{factor}"
        )
    return factor


def _starts(side: int, window: int, share: int) -> list[int]:
    """Where windows begin along a side: about half a window apart, at multiples of `share`, the last
    one flush."""
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
    """Draws the free codes of one image's grid of any size.

    Args:
      prior: draws them.
      given: int32 [H, W, *code_shape], no smaller than the prior's grid.
      free: bool [H, W].
      condition: codes of the condition, laid over the same grid, where the prior has one.
      label: a class, its number, or None.
      candidates: so many fillings are drawn, and the likeliest is kept.
      seed: decides everything.
      **how: see `TrainedPrior.fill`.

    Returns:
      int32 codes shaped as `given`.
    """
    if candidates < 1:
        raise UserError(f"candidates is {candidates}: use 1 or more")
    height, width = prior.module.grid
    codes = np.repeat(np.asarray(given, np.int32)[None], candidates, axis=0)
    free, likelihood = free.copy(), np.zeros(candidates)
    share = _share(prior)
    for i, (y, x) in enumerate(_windows(free, height, width, share)):
        here = np.s_[y : y + height, x : x + width]
        worse = None
        if condition is not None:
            part = condition[y // share : (y + height) // share, x // share : (x + width) // share]
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


def _windows(free: np.ndarray, height: int, width: int, share: int) -> Iterator[tuple[int, int]]:
    """Corners of windows, row by row, that cover all that is free, and have something to draw."""
    for y in _starts(free.shape[0], height, share):
        for x in _starts(free.shape[1], width, share):
            if free[y : y + height, x : x + width].any():
                yield y, x


def _share(prior: TrainedPrior) -> int:
    """Positions, along a side, that a position of the condition spans."""
    return prior.module.grid[0] // prior.module.condition[0] if prior.module.condition else 1


def _encode(prior: TrainedPrior, image: np.ndarray) -> np.ndarray:
    return np.asarray(prior.tokenizer.encode(to_float(image)[None]))[0]


def _decode(prior: TrainedPrior, codes: np.ndarray) -> np.ndarray:
    return np.asarray(prior.tokenizer.decode(codes[None]))[0]


def _multiple(prior: TrainedPrior, factor: int) -> tuple[int, int]:
    """What an image's sides are to be multiples of, so that all windows lie alike, and the least."""
    window = min(prior.module.grid)
    return factor * max(1, window // 2), factor * max(prior.module.grid)


def spread(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Fills what is not known smoothly from what is, nearest first.

    Args:
      values: float [H, W, C].
      known: bool [H, W], not all False.

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
    """Draws what is under the mask anew; every pixel outside it comes back as it was.

    Args:
      prior: without condition.
      image: uint8 [H, W, C], or with a channel more for opacity; what is drawn is opaque.
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
        raise UserError("the mask covers the whole image, which leaves nothing to go by: sample")
    padded = mirror_pad(image, *_multiple(prior, factor))
    hidden = mirror_pad(mask, *_multiple(prior, factor))
    # The encoder looks beyond a code's own pixels: what it finds there should not be a hole.
    plain = np.round(spread(padded.astype(np.float64), ~hidden)).astype(np.uint8)
    given = _encode(prior, plain)
    height, width = given.shape[:2]
    free = np.asarray(hidden.reshape(height, factor, width, factor).any(axis=(1, 3)))
    drawn = _decode(prior, fill_grid(prior, given, free, **how))
    # The tokenizer is a little off outside the mask; the same is taken back inside, less and less
    # with the distance from the seam.
    off = spread(to_float(padded) - drawn, ~hidden)
    near = np.exp(-((ndimage.distance_transform_edt(hidden) / _SEAM) ** 2))
    result = to_uint8(drawn + off * near[..., None])[: image.shape[0], : image.shape[1]]
    return np.where(mask[..., None], result, image)


def outpaint(
    prior: TrainedPrior, image: np.ndarray, margins: tuple[int, int, int, int], **how: Any
) -> np.ndarray:
    """Draws beyond the image's edges; the image itself comes back as it was.

    Args:
      prior: without condition.
      image: uint8 [H, W, C], or with a channel more for opacity.
      margins: pixels to add at the top, right, bottom and left.
      **how: see `fill_grid`.

    Returns:
      uint8 [top + H + bottom, left + W + right, C].
    """
    if len(margins) != 4 or min(margins) < 0 or not any(margins):
        raise UserError(
            f"margins are {', '.join(map(str, margins))}: four numbers of pixels, top, right, "
            "bottom, left, none below 0 and not all 0"
        )
    _check(prior, image, "none", "name a prior without condition")
    top, right, bottom, left = margins
    height, width = top + image.shape[0] + bottom, left + image.shape[1] + right
    if height * width > max(_CANVAS, 4 * image.shape[0] * image.shape[1]):
        raise UserError(
            f"margins make an image of {width}x{height} pixels: at most {_CANVAS:,}, or four times "
            "those of the image"
        )
    canvas = np.pad(image, ((top, bottom), (left, right), (0, 0)), mode="edge")
    mask: np.ndarray = np.ones(canvas.shape[:2], bool)
    mask[top : top + image.shape[0], left : left + image.shape[1]] = False
    return inpaint(prior, canvas, mask, **how)


def upscale(
    prior: TrainedPrior, image: np.ndarray, factor: int | None = None, **how: Any
) -> np.ndarray:
    """Draws the image `factor` times as large; a prior of factor 2 enlarges by 4 in two rounds.

    Args:
      prior: with condition "upscale".
      image: uint8 [H, W, C].
      factor: a power of the prior's own; None is that itself.
      **how: see `fill_grid`.

    Returns:
      uint8 [factor * H, factor * W, C].
    """
    spans = _check(prior, image, "upscale", "train one with configs/prior_upscale.py")
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
            # So that windows begin where a code of the small image does.
            worse = mirror_pad(
                image, spans * max(1, prior.module.grid[0] // 2 // own), least // own
            )
        codes = _redraw(prior, worse, **how | {"seed": how.get("seed", 0) + 10_000 * i})
        image = to_uint8(_decode(prior, codes))[:height, :width]
    return image


def restore(prior: TrainedPrior, image: np.ndarray, **how: Any) -> np.ndarray:
    """Draws the image as it was before noise, blur, JPEG and bad light.

    Args:
      prior: with condition "restore".
      image: uint8 [H, W, C].
      **how: see `fill_grid`.

    Returns:
      uint8 [H, W, C].
    """
    factor = _check(prior, image, "restore", "train one with configs/prior_restore.py")
    worse = mirror_pad(image, *_multiple(prior, factor))
    codes = _redraw(prior, worse, **how)
    return to_uint8(_decode(prior, codes))[: image.shape[0], : image.shape[1]]


def _redraw(prior: TrainedPrior, worse: np.ndarray, **how: Any) -> np.ndarray:
    """All codes of the image that `worse` is a worse version of."""
    condition = _encode(prior, worse)
    height, width = (_share(prior) * side for side in condition.shape[:2])
    given = np.zeros((height, width, *condition.shape[2:]), np.int32)
    everything: np.ndarray = np.ones((height, width), bool)
    return fill_grid(prior, given, everything, condition=condition, **how)


def variations(
    prior: TrainedPrior, image: np.ndarray, share: float, count: int, **how: Any
) -> np.ndarray:
    """Draws a share of the image's codes anew, several times.

    Args:
      prior: without condition.
      image: uint8 [H, W, C].
      share: of the codes, in (0, 1].
      count: how many variations.
      **how: see `fill_grid`.

    Returns:
      uint8 [count, H, W, C].
    """
    factor = _check(prior, image, "none", "name a prior without condition")
    if not 0 < share <= 1:
        raise UserError(f"the share to draw anew is {share}: use more than 0, up to 1")
    if not 1 <= count <= _MOST:
        raise UserError(f"count is {count}: use 1 to {_MOST}")
    given = _encode(prior, mirror_pad(image, *_multiple(prior, factor)))
    seed = check_seed(how.pop("seed", 0))
    results = []
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        places = rng.permutation(given.shape[0] * given.shape[1]).reshape(given.shape[:2])
        free = np.asarray(places < max(1, round(share * places.size)))
        codes = fill_grid(prior, given, free, seed=seed + 10_000 * i, **how)
        results.append(to_uint8(_decode(prior, codes))[: image.shape[0], : image.shape[1]])
    return np.stack(results)

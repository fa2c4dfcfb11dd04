"""Fills gaps in texts with a prior over their codes."""

from typing import Any

import numpy as np

from vq_jax import modalities
from vq_jax.errors import UserError
from vq_jax.models.priors import sees_later
from vq_jax.prior import TrainedPrior


def check_prior(prior: Any) -> None:
    """Raises UserError unless it is a prior of texts that sees what is after a gap."""
    if not isinstance(prior, TrainedPrior) or prior.modality is not modalities.MODALITIES["text"]:
        raise UserError("gaps in texts need a prior of texts: open the run of one")
    if not sees_later(prior.module):
        raise UserError(
            "this prior reads texts from left to right, and does not see what is after a gap: train one "
            "that is 'masked' or 'random_order'; to continue a text, sample with prompt"
        )


def fill_gap(
    prior: TrainedPrior,
    text: np.ndarray,
    gap: np.ndarray,
    *,
    label: Any = None,
    candidates: int = 1,
    seed: int = 0,
    **how: Any,
) -> np.ndarray:
    """Draws the bytes of a gap; all other bytes stay as they are.

    The prior sees one window, as long as its examples are, with the gap in its middle.

    Args:
      prior: masked or random_order, without condition.
      text: uint8 [N].
      gap: bool [N], True for bytes to draw.
      label: a class, its number, or None.
      candidates: number of candidates, of which the one is kept whose text is likeliest given its codes, or else whose
        codes are likeliest.
      seed: of the samples.
      **how: see `TrainedPrior.fill`.

    Returns:
      uint8 [N].

    Raises:
      UserError: the gap is too long, there is none, or the prior cannot do it.
    """
    check_prior(prior)
    if text.dtype != np.uint8 or text.ndim != 1 or gap.dtype != bool or gap.shape != text.shape:
        raise UserError(
            f"the text is {text.dtype} {text.shape} and the gap {gap.dtype} {gap.shape}: make them uint8 "
            "[N] and bool [N]"
        )
    if candidates < 1:
        raise UserError(f"candidates is {candidates}: use 1 or more")
    if not gap.any():
        raise UserError("there is no gap in the text")
    (length,) = prior.tokenizer.spec.shape
    first, last = np.flatnonzero(gap)[[0, -1]]
    if last - first >= length - 1:
        raise UserError(
            f"the gaps span {last - first + 1:,} bytes, and this prior reads {length:,}: fill them one "
            "by one"
        )
    start = int(np.clip((first + last + 1 - length) // 2, 0, max(0, len(text) - length)))
    here = slice(start, start + length)
    x = np.where(gap[here], ord(" "), text[here]).astype(np.int32)
    known = np.where(gap[here], -1, x)
    x, known = (
        np.pad(x, (0, length - len(x))),
        np.pad(known, (0, length - len(x)), constant_values=-1),
    )
    codes = np.asarray(prior.tokenizer.encode(x[None]))
    grid = prior.tokenizer.codes.grid
    free: Any = (known < 0).reshape(*grid, -1).any(axis=-1)
    drawn, likelihood = prior.fill(
        np.repeat(codes, candidates, axis=0),
        np.repeat(free[None], candidates, axis=0),
        label=label,
        seed=seed,
        **how,
    )
    known = np.repeat(known[None], candidates, axis=0)
    texts = prior.decode(drawn, known, seed=seed, temperature=how.get("temperature"))
    best = 0
    if candidates > 1:
        of_text = np.arange(length) < len(text[here])
        log_p = np.asarray(prior.tokenizer.log_likelihood(texts, drawn, of_text))
        best = max(range(candidates), key=lambda i: (log_p[i], likelihood[i]))
    found = texts[best]
    result = text.copy()
    result[here][gap[here]] = found[: len(text[here])][gap[here]]
    return result


def read_gap(text: np.ndarray, mark: str) -> np.ndarray:
    """Returns where a text has a mark, bool [N].

    Args:
      text: uint8 [N].
      mark: one byte that stands for each byte to draw.

    Raises:
      UserError: the mark is no single byte, or is not in the text.
    """
    encoded = mark.encode("utf-8", "surrogateescape")
    if len(encoded) != 1:
        raise UserError(f"gap is {mark!r}: give one character that is one byte in UTF-8")
    found = text == encoded[0]
    if not found.any():
        raise UserError(f"there is no {mark!r} in the text: put one for each byte to draw")
    return found

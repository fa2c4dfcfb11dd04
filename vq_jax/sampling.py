"""Samples codes from a prior, which is given as a function that returns logits.

Logits are float32 [G, B, ..., K]. G is 1, or 2 with guidance: logits with the label, then without. An
example has N tokens, in the order of its codes. `free` is True for the codes to sample; the others are
given and stay. Every row has its own key, so a sample depends on the seed and its index and not on the
batch.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Radices = tuple[int, ...]
GUIDANCE_SCHEDULES = ("constant", "linear", "cosine")
_HALTON_BASES = (2, 3, 5)  # of each axis


@dataclasses.dataclass(frozen=True)
class Draw:
    """How a code is sampled from its logits.

    Attributes:
      temperature: divisor of the logits; 0 takes the likeliest code.
      top_k: number of likeliest codes to sample from; 0 is all.
      top_p: sample from the smallest set of likeliest codes with this probability.
      min_p: sample from codes whose probability relative to the likeliest is at least this.
      guidance: weight of the label (Ho & Salimans 2022, eq. 6, with 1 + w as one number): 1 is no
        guidance, 0 ignores the label.
      guidance_schedule: "constant", or "linear" or "cosine", which rise from 1 to `guidance` with the
        share of known codes (of a next-scale prior: from the first scale to the last).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    guidance: float = 1.0
    guidance_schedule: str = "constant"

    def __post_init__(self):
        for name, holds, wanted in (
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0, up to 1"),
            ("min_p", 0 <= self.min_p < 1, "0 or more, below 1"),
            ("guidance", self.guidance >= 0, "0 or more"),
            (
                "guidance_schedule",
                self.guidance_schedule in GUIDANCE_SCHEDULES,
                f"one of {', '.join(GUIDANCE_SCHEDULES)}",
            ),
        ):
            if not holds:
                raise ValueError(f"{name} is {getattr(self, name)}: use {wanted}")

    @property
    def guided(self) -> bool:
        """Whether logits without the label are needed."""
        return self.guidance != 1.0


def filter_logits(
    logits: jax.Array,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> jax.Array:
    """Sets the logits of codes that must not be sampled to -inf; at least one code stays.

    Applies the temperature, then top-k (Fan et al. 2018), top-p (Holtzman et al. 2020) and min-p
    (Nguyen et al. 2024), each to the result of the one before.

    Args:
      logits: float [..., K].
      temperature, top_k, top_p, min_p: see `Draw`.

    Returns:
      float32 [..., K].
    """
    logits = logits.astype(jnp.float32)
    size = logits.shape[-1]
    if temperature == 0.0:
        best = jnp.argmax(logits, axis=-1, keepdims=True)
        return jnp.where(jnp.arange(size) == best, 0.0, -jnp.inf)
    logits = logits / temperature
    kept = min(top_k or size, size)
    if kept < size or top_p < 1.0:
        best, index = jax.lax.top_k(logits, kept)
        p = jax.nn.softmax(best, axis=-1)
        before = jnp.cumsum(p, axis=-1) - p
        best = jnp.where((before < top_p) | (jnp.arange(kept) == 0), best, -jnp.inf)
        logits = jnp.put_along_axis(
            jnp.full_like(logits, -jnp.inf), index, best, axis=-1, inplace=False
        )
    if min_p > 0.0:
        floor = jnp.max(logits, axis=-1, keepdims=True) + math.log(min_p)
        logits = jnp.where(logits >= floor, logits, -jnp.inf)
    return logits


def guide(logits_G: jax.Array, draw: Draw, progress: jax.Array | float) -> jax.Array:
    """Applies classifier-free guidance (Ho & Salimans 2022, eq. 6).

    Args:
      logits_G: float32 [G, ..., K], G 1 or 2.
      draw: has the scale and its schedule.
      progress: share of known codes, in [0, 1]; a scalar, or [B] for each row.

    Returns:
      float32 [..., K].
    """
    if logits_G.shape[0] == 1:
        return logits_G[0]
    rise = {
        "constant": 1.0,
        "linear": progress,
        "cosine": (1.0 - jnp.cos(jnp.pi * progress)) / 2.0,
    }[draw.guidance_schedule]
    scale = jnp.asarray(1.0 + (draw.guidance - 1.0) * rise)
    scale = scale.reshape(scale.shape + (1,) * (logits_G.ndim - 1 - scale.ndim))
    return logits_G[1] + scale * (logits_G[0] - logits_G[1])


def row_keys(key: jax.Array, first: jax.Array | int, rows: int) -> jax.Array:
    """Returns a key for each row: keys [rows] of rows first, first + 1, ..."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(rows))


def fold_keys(keys_B: jax.Array, n: jax.Array | int) -> jax.Array:
    """Folds a number into each of the keys [B]."""
    return jax.vmap(lambda key: jax.random.fold_in(key, n))(keys_B)


def draw_codes(
    keys_B: jax.Array, logits: jax.Array, draw: Draw, radices: Radices = ()
) -> jax.Array:
    """Samples int32 [B, ...] from logits [B, ..., K], filtered by `draw`; each row has its key.

    With `radices`, the logits are those of digits (see `split_digits`), which are filtered and drawn each.
    """
    if radices:
        digits = []
        for i, part in enumerate(split_digits(logits, radices)):
            digits.append(draw_codes(fold_keys(keys_B, i), part, draw))
        return join_digits(digits, radices)
    logits = filter_logits(logits, draw.temperature, draw.top_k, draw.top_p, draw.min_p)
    return jax.vmap(jax.random.categorical)(keys_B, logits).astype(jnp.int32)


def log_probability(logits: jax.Array, codes: jax.Array, radices: Radices = ()) -> jax.Array:
    """Returns the log-probability in nats of codes int [...] under logits float32 [..., K].

    With `radices`, it is the sum of those of the digits; see `split_digits`.
    """

    def of_digit(logits, digit):
        logits = logits.astype(jnp.float32)
        chosen = jnp.take_along_axis(logits, digit[..., None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    parts = map(of_digit, split_digits(logits, radices), digits_of(codes, radices))
    return functools.reduce(jnp.add, parts)


def likeliest(logits: jax.Array, radices: Radices = ()) -> jax.Array:
    """Returns the likeliest codes, int32 [...], of logits [..., K]; for `radices` see `split_digits`."""
    digits = [jnp.argmax(part, axis=-1) for part in split_digits(logits, radices)]
    return join_digits(digits, radices).astype(jnp.int32)


# --- digits -----------------------------------------------------------------------------------------


def digit_logits(radices: Radices) -> int:
    """Returns the number of logits of all digits: one for a bit, r for a digit of r values."""
    return sum(1 if radix == 2 else radix for radix in radices)


def split_digits(logits: Any, radices: Radices) -> list[Any]:
    """Splits the logits of a code whose digits are independent, given what is before.

    The codes of `lfq`, `bsq` and `fsq` are numbers, whose digits stand for the dimensions of a latent. So
    2^18 codes need 18 logits (Han et al. 2024, Infinity, sec. 3.3; Weber et al. 2024, MaskBit).

    Args:
      logits: float [..., digit_logits(radices)]. That of a bit is the log-odds of 1.
      radices: number of values of each digit, the lowest digit first; () is one digit, the code itself.

    Returns:
      for each digit, float [..., radix].
    """
    if not radices:
        return [logits]
    parts, start = [], 0
    for radix in radices:
        size = 1 if radix == 2 else radix
        part = logits[..., start : start + size]
        if radix == 2:
            half = part * 0.5
            part = (jnp if isinstance(part, jax.Array) else np).concatenate([-half, half], axis=-1)
        parts.append(part)
        start += size
    return parts


def digits_of(codes: Any, radices: Radices) -> list[Any]:
    """Returns the digits of codes, the lowest first; with radices () the codes themselves."""
    if not radices:
        return [codes]
    digits = []
    for radix in radices:
        digits.append(codes % radix)
        codes = codes // radix
    return digits


def join_digits(digits: Sequence[Any], radices: Radices) -> Any:
    """Inverts `digits_of`."""
    if not radices:
        return digits[0]
    codes, place = 0, 1
    for digit, radix in zip(digits, radices, strict=True):
        codes, place = codes + place * digit, place * radix
    return codes


def sample_autoregressive(
    begin: Callable[[], tuple[jax.Array, Any]],
    step: Callable[..., tuple[jax.Array, Any]],
    keys_B: jax.Array,
    given_BN: jax.Array,
    free_BN: jax.Array,
    order_BP: jax.Array,
    draw: Draw,
    radices: Radices = (),
) -> tuple[jax.Array, jax.Array]:
    """Samples codes one after another, in one compiled loop.

    Args:
      begin: () -> logits [G, B, K] of the first code visited, and the cache.
      step: (code_B, n, position_B, next_position_B, cache) -> logits of the next code, and the cache.
      keys_B: one key for each row.
      given_BN: int32, given codes.
      free_BN: bool, True for codes to sample.
      order_BP: int32, each row a permutation of the positions, of N / P tokens each.
      draw: how to sample a code.
      radices: of codes that have logits of their digits; see `split_digits`.

    Returns:
      codes int32 [B, N]; float32 [B], the log-probability in nats of the sampled codes, each given
      all codes before it, without filter and guidance.
    """
    rows, length = given_BN.shape
    books = length // order_BP.shape[1]
    row = jnp.arange(rows)

    def place(n):
        position_B = order_BP[:, n // books]
        return position_B, position_B * books + n % books

    def choose(n, logits_G, codes_BN, likelihood_B):
        _, index_B = place(n)
        guided = guide(logits_G, draw, n / length)
        drawn_B = draw_codes(fold_keys(keys_B, n), guided, draw, radices)
        free_B = free_BN[row, index_B]
        code_B = jnp.where(free_B, drawn_B, codes_BN[row, index_B])
        gained_B = log_probability(logits_G[0], code_B, radices)
        likelihood_B += jnp.where(free_B, gained_B, 0.0)
        return code_B, codes_BN.at[row, index_B].set(code_B), likelihood_B

    def body(n, carry):
        logits_G, cache, codes_BN, likelihood_B = carry
        code_B, codes_BN, likelihood_B = choose(n, logits_G, codes_BN, likelihood_B)
        logits_G, cache = step(code_B, n, place(n)[0], place(n + 1)[0], cache)
        return logits_G, cache, codes_BN, likelihood_B

    logits_G, cache = begin()
    carry = (logits_G, cache, given_BN, jnp.zeros((rows,), jnp.float32))
    logits_G, _, codes_BN, likelihood_B = jax.lax.fori_loop(0, length - 1, body, carry)
    _, codes_BN, likelihood_B = choose(length - 1, logits_G, codes_BN, likelihood_B)
    return codes_BN, likelihood_B


def sample_scales(
    logits_of: Callable[[int, jax.Array, Any], tuple[jax.Array, Any]],
    add: Callable[[int, jax.Array, jax.Array], jax.Array],
    total: jax.Array,
    sizes: Sequence[int],
    keys_B: jax.Array,
    given_BN: jax.Array,
    free_BN: jax.Array,
    draw: Draw,
) -> tuple[jax.Array, jax.Array]:
    """Samples a pyramid of codes, all codes of a scale at once (Tian et al. 2024, VAR, sec. 3.2).

    Guidance schedules rise with the scale: from 0 at the first to 1 at the last.

    Args:
      logits_of: (scale, sum of the coarser scales, cache or None) -> logits float32 [G, B, l, K] of the
        scale, and the cache with it.
      add: (scale, codes int32 [B, l], sum of the coarser scales) -> sum with this scale.
      total: the sum of no scales.
      sizes: number of codes of each scale.
      keys_B, given_BN, free_BN, draw: as for `sample_autoregressive`.

    Returns:
      codes int32 [B, N]; float32 [B], the log-probability in nats of the sampled codes, each given all
      coarser scales, without filter and guidance.
    """
    likelihood_B = jnp.zeros((len(given_BN),), jnp.float32)
    scales: list[jax.Array] = []
    cache, start = None, 0
    for i, size in enumerate(sizes):
        part = slice(start, start + size)
        logits_G, cache = logits_of(i, total, cache)
        guided = guide(logits_G, draw, i / max(1, len(sizes) - 1))
        drawn_Bl = draw_codes(fold_keys(keys_B, i), guided, draw)
        codes_Bl = jnp.where(free_BN[:, part], drawn_Bl, given_BN[:, part])
        gained_Bl = jnp.where(free_BN[:, part], log_probability(logits_G[0], codes_Bl), 0.0)
        likelihood_B += gained_Bl.sum(axis=1)
        total = add(i, codes_Bl, total)
        scales.append(codes_Bl)
        start += size
    return jnp.concatenate(scales, axis=1), likelihood_B


def sample_masked(
    logits: Callable[[jax.Array], jax.Array],
    keys_B: jax.Array,
    given_BN: jax.Array,
    free_BN: jax.Array,
    steps: int,
    draw: Draw,
    *,
    choice_temperature: float = 4.5,
    rank_N: jax.Array | None = None,
    radices: Radices = (),
) -> tuple[jax.Array, jax.Array]:
    """Samples many codes a step, the most confident first (Chang et al. 2022, MaskGIT, sec. 3.2).

    After step t of T, floor(cos(pi t / 2T) * n) of n codes are still masked. Every step fixes at least
    one code. A fixed code does not change.

    Args:
      logits: int32 codes [B, N], -1 where masked -> float32 [G, B, N, K].
      keys_B, given_BN, free_BN, draw: as for `sample_autoregressive`.
      steps: T.
      choice_temperature: scale of the Gumbel noise on the confidence in the first step; it decreases
        linearly to 0.
      rank_N: int32, fix codes in this order instead, such as `halton_order`, in which the codes of a
        step are far apart (Besnier et al. 2025).
      radices: as for `sample_autoregressive`.

    Returns:
      codes int32 [B, N]; float32 [B], the sum of the log-probabilities in nats that the sampled codes
      had when they were fixed, without filter and guidance.
    """
    rows, length = given_BN.shape
    total_B = free_BN.sum(axis=1)

    def body(t, carry):
        codes_BN, likelihood_B = carry
        masked_BN = codes_BN < 0
        masked_B = masked_BN.sum(axis=1)
        progress_B = 1.0 - masked_B / length
        logits_G = logits(codes_BN)
        keys = fold_keys(keys_B, 2 * t)
        guided = guide(logits_G, draw, progress_B)
        drawn_BN = draw_codes(keys, guided, draw, radices)
        if rank_N is None:
            scale = choice_temperature * (1.0 - (t + 1) / steps)
            noise_BN = jax.vmap(lambda key: jax.random.gumbel(key, (length,)))(
                fold_keys(keys_B, 2 * t + 1)
            )
            confidence_BN = log_probability(guided, drawn_BN, radices) + scale * noise_BN
        else:
            confidence_BN = jnp.broadcast_to(-rank_N.astype(jnp.float32), (rows, length))
        # In floating point, cos(pi / 2) is not exactly 0.
        left_B = jnp.floor(total_B * jnp.cos(jnp.pi / 2 * (t + 1) / steps) + 1e-4)
        left_B = jnp.minimum(left_B.astype(jnp.int32), masked_B - 1)
        left_B = jnp.where(t + 1 == steps, 0, left_B)
        rank_BN = jnp.argsort(
            jnp.argsort(jnp.where(masked_BN, -confidence_BN, jnp.inf), axis=1), axis=1
        )
        fixed_BN = masked_BN & (rank_BN < (masked_B - left_B)[:, None])
        gained_BN = log_probability(logits_G[0], drawn_BN, radices)
        gained_BN = jnp.where(fixed_BN, gained_BN, 0.0)
        return jnp.where(fixed_BN, drawn_BN, codes_BN), likelihood_B + gained_BN.sum(axis=1)

    start = jnp.where(free_BN, -1, given_BN), jnp.zeros((rows,), jnp.float32)
    return jax.lax.fori_loop(0, steps, body, start)


def halton_order(grid: tuple[int, ...], books: int = 1) -> np.ndarray:
    """Returns the rank of each token if positions are visited along a Halton sequence.

    Args:
      grid: shape of the positions, of up to three axes.
      books: number of tokens a position.

    Returns:
      int32 [positions * books], a permutation, 0 for the token visited first.
    """
    if len(grid) > len(_HALTON_BASES):
        raise ValueError(f"a Halton order has at most {len(_HALTON_BASES)} axes, not {len(grid)}")
    grid = grid or (1,)
    bases = _HALTON_BASES[: len(grid)]

    def radical_inverse(i: int, base: int) -> float:
        result, digit = 0.0, 1.0
        while i:
            digit /= base
            result += digit * (i % base)
            i //= base
        return result

    count = math.prod(grid)
    rank = np.full(count, -1, np.int32)
    found, i = 0, 0
    while found < count:
        i += 1
        cell = [
            int(radical_inverse(i, base) * side) for base, side in zip(bases, grid, strict=True)
        ]
        place = int(np.ravel_multi_index(cell, grid))
        if rank[place] < 0:
            rank[place], found = found, found + 1
    return (rank[:, None] + count * np.arange(books, dtype=np.int32)).reshape(-1)

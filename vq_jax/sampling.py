"""Drawing codes from a prior, given as a function that returns logits.

Such a function returns float32 [G, B, ..., K]: G is 1, or 2 where a label guides: logits with the
label, then without. N tokens an image, in the order of the codes; `free` says which of them are
drawn, the others are given and stay. Every row draws from a key of its own, so that an image depends
on the seed and its number and not on the batch it is drawn in.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

GUIDANCE_SCHEDULES = ("constant", "linear", "cosine")


@dataclasses.dataclass(frozen=True)
class Draw:
    """How a code is drawn from its logits.

    Attributes:
      temperature: the logits are divided by it; 0 takes the likeliest code.
      top_k: only so many of the likeliest codes; 0 for all.
      top_p: only the smallest set of likeliest codes that holds this much of the probability.
      min_p: only codes at least this likely, relative to the likeliest.
      guidance: weight of the label (Ho & Salimans 2022, eq. 6, with 1 + w written as one number):
        1 is without, 0 ignores the label.
      guidance_schedule: "constant"; or "linear" or "cosine", which rise to `guidance` from 1 as
        the image fills.
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
        """Whether logits without the label are needed, too."""
        return self.guidance != 1.0


def filter_logits(
    logits: jax.Array,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> jax.Array:
    """Logits of the codes that may be drawn, -inf at the others; at least one stays.

    The temperature comes first, then top-k (Fan et al. 2018), top-p (Holtzman et al. 2020) and
    min-p (Nguyen et al. 2024), each on what the one before has left.

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
    """Logits moved away from those without the label (Ho & Salimans 2022, eq. 6).

    Args:
      logits_G: float32 [G, ..., K], G 1 or 2.
      draw: has the scale and its schedule.
      progress: how much of the image is there, in [0, 1]; of each row, [B], or of all.

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
    """A key for each row, by its number: keys [rows] for rows first, first + 1, ..."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(rows))


def _fold(keys_B: jax.Array, n: jax.Array | int) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, n))(keys_B)


def draw_codes(keys_B: jax.Array, logits: jax.Array, draw: Draw) -> jax.Array:
    """int32 [B, ...] drawn from logits [B, ..., K], filtered as `draw` says; each row by its key."""
    logits = filter_logits(logits, draw.temperature, draw.top_k, draw.top_p, draw.min_p)
    return jax.vmap(jax.random.categorical)(keys_B, logits).astype(jnp.int32)


def log_probability(logits: jax.Array, codes: jax.Array) -> jax.Array:
    """Log-probability, in nats, of codes int [...] under logits float32 [..., K]."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, codes[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def one_by_one(
    begin: Callable[[], tuple[jax.Array, Any]],
    step: Callable[..., tuple[jax.Array, Any]],
    keys_B: jax.Array,
    given_BN: jax.Array,
    free_BN: jax.Array,
    order_BP: jax.Array,
    draw: Draw,
) -> tuple[jax.Array, jax.Array]:
    """Codes one after another, in one compiled loop.

    Args:
      begin: () -> logits [G, B, K] of the first code visited, and the cache.
      step: (code_B, n, position_B, next_position_B, cache) -> logits of the next, and the cache.
      keys_B: a key a row.
      given_BN: int32, codes that are given.
      free_BN: bool, True where a code is drawn instead.
      order_BP: int32, each row a permutation of the positions, of N / P tokens each.
      draw: how.

    Returns:
      codes int32 [B, N]; float32 [B], log-probability in nats of those drawn, given all before
      them, without filter or guidance.
    """
    rows, length = given_BN.shape
    books = length // order_BP.shape[1]
    row = jnp.arange(rows)

    def place(n):
        position_B = order_BP[:, n // books]
        return position_B, position_B * books + n % books

    def choose(n, logits_G, codes_BN, likelihood_B):
        _, index_B = place(n)
        drawn_B = draw_codes(_fold(keys_B, n), guide(logits_G, draw, n / length), draw)
        free_B = free_BN[row, index_B]
        code_B = jnp.where(free_B, drawn_B, codes_BN[row, index_B])
        likelihood_B += jnp.where(free_B, log_probability(logits_G[0], code_B), 0.0)
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


def in_parallel(
    logits: Callable[[jax.Array], jax.Array],
    keys_B: jax.Array,
    given_BN: jax.Array,
    free_BN: jax.Array,
    steps: int,
    draw: Draw,
    *,
    choice_temperature: float = 4.5,
    rank_N: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Many codes at once, the surest first (Chang et al. 2022, MaskGIT, sec. 3.2).

    After step t of T, floor(cos(pi t / 2T) * n) of n codes are still masked; at least one is
    settled in every step. Once settled, a code stays.

    Args:
      logits: int32 codes [B, N], -1 where masked -> float32 [G, B, N, K].
      keys_B, given_BN, free_BN, draw: as for `one_by_one`.
      steps: T.
      choice_temperature: how much chance there is in which codes are the surest, in the first
        step; it falls linearly to 0.
      rank_N: int32, settle codes by this order instead (`halton_order`), in which those of one step
        lie far apart (Besnier et al. 2025).

    Returns:
      codes int32 [B, N]; float32 [B], the sum of the log-probabilities, in nats, that the drawn
      codes had when they were settled, without filter or guidance.
    """
    rows, length = given_BN.shape
    total_B = free_BN.sum(axis=1)

    def body(t, carry):
        codes_BN, likelihood_B = carry
        masked_BN = codes_BN < 0
        masked_B = masked_BN.sum(axis=1)
        progress_B = 1.0 - masked_B / length
        logits_G = logits(codes_BN)
        keys = _fold(keys_B, 2 * t)
        guided = guide(logits_G, draw, progress_B)
        drawn_BN = draw_codes(keys, guided, draw)
        if rank_N is None:
            heat = choice_temperature * (1.0 - (t + 1) / steps)
            noise_BN = jax.vmap(lambda key: jax.random.gumbel(key, (length,)))(
                _fold(keys_B, 2 * t + 1)
            )
            sure_BN = log_probability(guided, drawn_BN) + heat * noise_BN
        else:
            sure_BN = jnp.broadcast_to(-rank_N.astype(jnp.float32), (rows, length))
        # A little is added for rounding: the cosine of a right angle is not quite 0.
        left_B = jnp.floor(total_B * jnp.cos(jnp.pi / 2 * (t + 1) / steps) + 1e-4)
        left_B = jnp.minimum(left_B.astype(jnp.int32), masked_B - 1)
        left_B = jnp.where(t + 1 == steps, 0, left_B)
        rank_BN = jnp.argsort(jnp.argsort(jnp.where(masked_BN, -sure_BN, jnp.inf), axis=1), axis=1)
        settled_BN = masked_BN & (rank_BN < (masked_B - left_B)[:, None])
        gained_BN = jnp.where(settled_BN, log_probability(logits_G[0], drawn_BN), 0.0)
        return jnp.where(settled_BN, drawn_BN, codes_BN), likelihood_B + gained_BN.sum(axis=1)

    start = jnp.where(free_BN, -1, given_BN), jnp.zeros((rows,), jnp.float32)
    return jax.lax.fori_loop(0, steps, body, start)


def halton_order(grid: tuple[int, ...], books: int = 1) -> np.ndarray:
    """When each token's turn comes if positions are visited along a Halton sequence.

    Args:
      grid: shape of the positions, of one or two dimensions.
      books: tokens a position.

    Returns:
      int32 [positions * books], a permutation: 0 for the token visited first.
    """

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
            int(radical_inverse(i, base) * side) for base, side in zip((2, 3), grid, strict=False)
        ]
        place = int(np.ravel_multi_index(cell, grid))
        if rank[place] < 0:
            rank[place], found = found, found + 1
    return (rank[:, None] + count * np.arange(books, dtype=np.int32)).reshape(-1)

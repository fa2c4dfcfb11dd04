"""Samples codes from a prior of any kind."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vq_jax import sampling
from vq_jax.models.next_scale import NextScale
from vq_jax.models.priors import Prior
from vq_jax.models.transformer import Transformer
from vq_jax.sampling import Draw

Filled = tuple[jax.Array, jax.Array]
Codes = tuple[jax.Array, jax.Array, jax.Array]  # keys, given codes, which are free


def fill_codes(
    module: Prior, variables: Any, given_BN: jax.Array, free_BN: jax.Array, label_B: jax.Array,
    condition_BM: jax.Array | None, keys_B: jax.Array,
    *, draw: Draw, steps: int, choice_temperature: float, halton: bool,
) -> Filled:  # fmt: skip
    """Samples the free codes of examples, given the others.

    Args:
      module, variables: the prior; see `TrainedPrior`.
      given_BN: int32, codes; those that are free are ignored.
      free_BN: bool.
      label_B: int32, `module.classes` for no class.
      condition_BM: int32, codes of the condition, or None.
      keys_B: a key for each row.
      draw, steps, choice_temperature, halton: see `TrainedPrior.fill`.

    Returns:
      codes int32 [B, N]; float32 [B], the log-probability in nats of those sampled.
    """
    rows = len(label_B)
    ways = 2 if draw.guided else 1
    if ways == 2:  # with and without the label
        label_B = jnp.concatenate([label_B, jnp.full_like(label_B, module.classes)])
        condition_BM = None if condition_BM is None else jnp.tile(condition_BM, (2, 1))

    def apply(*args: Any, method: str | None = None) -> Any:
        return module.apply(variables, *args, method=method)

    def by_way(logits: jax.Array) -> jax.Array:
        return logits.reshape(ways, rows, *logits.shape[1:])

    codes = keys_B, given_BN, free_BN
    if isinstance(module, NextScale):
        return _scale_by_scale(module, apply, by_way, label_B, codes, draw)
    if module.causal:
        return _one_by_one(module, apply, by_way, label_B, condition_BM, codes, draw)

    def logits_of(codes_BN: jax.Array) -> jax.Array:
        return by_way(apply(jnp.tile(codes_BN, (ways, 1)), label_B, condition_BM))

    rank_N = jnp.asarray(sampling.halton_order(module.grid, module.books)) if halton else None
    return sampling.sample_masked(
        logits_of,
        *codes,
        steps,
        draw,
        choice_temperature=choice_temperature,
        rank_N=rank_N,
        radices=module.radices,
    )


def _scale_by_scale(
    module: NextScale,
    apply: Callable,
    by_way: Callable,
    label_B: jax.Array,
    codes: Codes,
    draw: Draw,
) -> Filled:
    rows = len(codes[1])

    def add(i, codes_Bl, total):
        return apply(i, codes_Bl, total, method="add_scale")

    def logits_of(i, total, cache):
        total = jnp.tile(total, (len(label_B) // rows, 1, 1, 1))
        logits, cache = apply(i, total, label_B, cache, method="scale_logits")
        return by_way(logits), cache

    return sampling.sample_scales(
        logits_of, add, module.empty_sum(rows), module.sizes, *codes, draw
    )


def _one_by_one(
    module: Transformer, apply: Callable, by_way: Callable, label_B: jax.Array,
    condition_BM: jax.Array | None, codes: Codes, draw: Draw,
) -> Filled:  # fmt: skip
    _, given_BN, free_BN = codes
    rows, ways = len(given_BN), len(label_B) // len(given_BN)
    positions = math.prod(module.grid)
    order_BP = jnp.broadcast_to(jnp.arange(positions), (rows, positions))
    if module.target_aware:  # given codes are read first
        free_BP = free_BN.reshape(rows, positions, module.books).any(-1)
        order_BP = jnp.argsort(free_BP, axis=1, stable=True)

    def tiled(x_B):
        return jnp.tile(x_B, ways)

    def begin():
        empty = apply(ways * rows, method="empty_cache")
        first = tiled(order_BP[:, 0])
        logits, cache = apply(label_B, condition_BM, first, empty, method="begin")
        return by_way(logits), cache

    def step(code_B, n, position_B, next_B, cache):
        logits, cache = apply(
            tiled(code_B), n, tiled(position_B), tiled(next_B), cache, method="step"
        )
        return by_way(logits), cache

    return sampling.sample_autoregressive(begin, step, *codes, order_BP, draw, module.radices)

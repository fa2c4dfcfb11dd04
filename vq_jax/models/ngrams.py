"""Embeddings of the last few codes together, looked up by a hash (Pagnoni et al. 2024, BLT, sec. 3.2.1)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vq_jax.models.blocks import normal

# Odd constants near 2^32 divided by the golden ratio, and by its square (Knuth 1998, sec. 6.4).
_FACTOR, _STEP = 2654435761, 1640531527


def codes_before(codes_BN: jax.Array, count: int) -> list[jax.Array]:
    """Returns the codes 1, 2, ... `count` places before each code, int32 [B, N] each; -1 is none."""
    padded = jnp.pad(codes_BN, ((0, 0), (count, 0)), constant_values=-1)
    length = codes_BN.shape[1]
    return [padded[:, count - i : count - i + length] for i in range(1, count + 1)]


class NgramEmbedding(nn.Module):
    """Embeds each code together with the codes before it: float [..., features].

    Each order n has a table, in which the last n codes have the row of their hash. It is a memory of
    which codes follow which, and costs no matrix product over its size.

    Attributes:
      orders: numbers of codes that are joined, 2 or more each.
      bits: a table has 2^bits rows.
      dim: size of a row.
      features: size of the result.
      dropout: rate at which the row of an order is left out in training. Rare n-grams are learned by
        heart otherwise, and trusted too much.
      dtype: of the result.
    """

    orders: tuple[int, ...]
    bits: int
    dim: int
    features: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @property
    def context(self) -> int:
        """Number of codes before a code that are read."""
        return max(self.orders) - 1

    @nn.compact
    def __call__(
        self, codes: jax.Array, before: Sequence[jax.Array], train: bool = False
    ) -> jax.Array:
        """Embeds codes.

        Args:
          codes: int [...].
          before: the codes 1, 2, ... `context` places before; -1 is none.
          train: whether dropout is on, with the rng "dropout".

        Returns:
          [..., features].
        """
        tables = self.param("tables", normal, (len(self.orders), 2**self.bits, self.dim))
        found = []
        hashed = _spread(codes, jnp.uint32(_STEP))
        for n, code in enumerate(before, start=2):
            hashed = _spread(code, hashed)
            if n in self.orders:
                row = (hashed >> (32 - self.bits)).astype(jnp.int32)
                found.append(tables[self.orders.index(n)][row])
        drop = nn.Dropout(self.dropout, broadcast_dims=(-1,), deterministic=not train)
        rows = drop(jnp.stack(found, axis=-2))
        joined = rows.reshape(*codes.shape, -1).astype(self.dtype)
        dense = nn.Dense(
            self.features,
            use_bias=False,
            kernel_init=nn.initializers.normal(0.05),
            dtype=self.dtype,
            name="out",
        )
        return dense(joined)


def _spread(code: jax.Array, hashed: jax.Array) -> jax.Array:
    """Adds a code to a hash, uint32, whose high bits are spread evenly."""
    hashed = (hashed ^ (code + 2).astype(jnp.uint32)) * jnp.uint32(_FACTOR)
    return hashed ^ (hashed >> 15)

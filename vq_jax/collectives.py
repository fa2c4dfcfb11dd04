"""Sums and means across devices: the only module that calls `jax.lax.psum` and `jax.lax.pmean`.

Every function takes the name of the mapped axis. With None, devices exchange nothing. The same code
thus runs on one device, inside `jax.pmap`, and under `jax.jit` with sharded arrays, where an
ordinary mean is already the mean over all devices.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


def pmean(tree: Tree, axis_name: str | None) -> Tree:
    """Averages every leaf over the devices of `axis_name`; the identity if it is None."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def psum(tree: Tree, axis_name: str | None) -> Tree:
    """Sums every leaf over the devices of `axis_name`; the identity if it is None."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def first_row(n_local: int, axis_name: str | None) -> jax.Array | int:
    """Returns the index of this device's first row among the rows of all devices.

    Args:
      n_local: number of rows on each device.
      axis_name: the mapped axis, or None.
    """
    return 0 if axis_name is None else jax.lax.axis_index(axis_name) * n_local


def sample_rows(key: jax.Array, rows_ND: jax.Array, count: int, axis_name: str | None) -> jax.Array:
    """Samples rows uniformly from the rows of all devices.

    Every device draws the same indices into the concatenation of all rows and contributes the rows
    that it holds. A sum over devices combines them, so that the rows do not depend on the number of
    devices.

    Args:
      key: a PRNG key, the same on every device.
      rows_ND: float [N, D], this device's rows.
      count: number of rows to sample; without replacement, unless there are fewer rows.
      axis_name: the mapped axis, or None.

    Returns:
      [count, D] in the dtype of `rows_ND`, the same on every device.
    """
    n_local = rows_ND.shape[0]
    devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    total = n_local * devices
    if count <= total:
        index = jax.lax.top_k(jax.random.uniform(key, (total,)), count)[1]
    else:
        index = jax.random.randint(key, (count,), 0, total)
    if axis_name is None:
        return rows_ND[index]
    local = index - first_row(n_local, axis_name)
    is_local = (local >= 0) & (local < n_local)
    rows = jnp.where(is_local[:, None], rows_ND[jnp.clip(local, 0, n_local - 1)], 0)
    return jax.lax.psum(rows, axis_name)

"""One step on many devices: the only file that names pmap, meshes and shardings."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vq_jax.errors import UserError

PARALLEL = ("pmap", "jit")
AXIS = "data"


def _mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def check(parallel: str, batch_size: int, stride: int = 1) -> None:
    """Raises UserError when the run cannot be spread as asked.

    Args:
      parallel: one of `PARALLEL`.
      batch_size: images over all devices.
      stride: a step may look at every so manieth image; a device's share is a multiple of it, so
        that the choice does not depend on the number of devices.
    """
    if parallel not in PARALLEL:
        raise UserError(f"parallel is {parallel!r}: use one of {', '.join(PARALLEL)}")
    if batch_size % jax.device_count():
        raise UserError(
            f"data.batch_size {batch_size} does not divide over {jax.device_count()} devices"
        )
    if batch_size // jax.device_count() % stride:
        raise UserError(
            f"loss.perceptual_stride {stride} does not divide the "
            f"{batch_size // jax.device_count()} images of each device"
        )
    if parallel == "pmap" and jax.process_count() > 1:
        raise UserError("parallel='pmap' is for one host; use --config.parallel=jit on many")


def replicate(tree: Any) -> Any:
    """Puts a copy of every array on every device."""
    return jax.device_put(tree, NamedSharding(_mesh(), PartitionSpec()))


def run_once(function: Callable, *args: Any) -> Any:
    """Runs a function compiled in a hurry, for what is run a single time.

    Drawing params at full optimization takes XLA longer to compile than a small run's first epoch.
    """
    options = {}
    if jax.default_backend() == "cpu":  # other backends do not know these
        options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function, compiler_options=options)(*args)


def shard_batch(batch: dict[str, np.ndarray], parallel: str) -> dict[str, Any]:
    """Spreads a process's share of a batch over its devices.

    Args:
      batch: arrays [B_process, ...].
      parallel: "pmap" gives [local devices, B_process / local devices, ...]; "jit" global arrays
        sharded along their first axis.
    """
    if parallel == "pmap":
        devices = jax.local_device_count()
        return {k: v.reshape(devices, -1, *v.shape[1:]) for k, v in batch.items()}
    sharding = NamedSharding(_mesh(), PartitionSpec(AXIS))
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def compile_step(step: Callable, parallel: str) -> Callable:
    """Compiles `step(state, batch, key, *, axis_name)` over all devices.

    The state and the key are the same everywhere, the batch (from `shard_batch`) is spread, and the
    state given in is used up.
    """
    if parallel == "pmap":
        return jax.pmap(
            partial(step, axis_name=AXIS),
            axis_name=AXIS,
            in_axes=(None, 0, None),
            out_axes=None,
            donate_argnums=(0,),
        )
    everywhere = NamedSharding(_mesh(), PartitionSpec())
    return jax.jit(step, donate_argnums=(0,), out_shardings=everywhere)

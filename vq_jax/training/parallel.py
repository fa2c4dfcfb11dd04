"""One step on many devices and processes: the only file that names pmap, meshes and shardings."""

import ctypes
import importlib.util
import math
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils, topologies
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from vq_jax.errors import UserError, first_line
from vq_jax.files import cache_folder

# glibc's malloc.h: no allocations apart from the heap, never a smaller heap, one heap of all threads.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8

PARALLEL = ("pmap", "jit")
AXIS = "data"


def _mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def join_processes(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Makes this process one of many; call it before anything else of JAX.

    Args:
      coordinator: HOST:PORT of process 0; all three may be None where the cluster tells them.
      processes: how many there are.
      process: which of them this is.

    Raises:
      UserError: they did not find each other.
    """
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            # At the end the others wait for process 0, which measures.
            shutdown_timeout_seconds=24 * 3600,
        )
    except (ValueError, RuntimeError) as e:
        raise UserError(
            f"the processes did not find each other ({first_line(e)}): give "
            "--coordinator=HOST:PORT, --processes and --process, unless the cluster tells them"
        ) from e


class Preemption:
    """While it is entered, SIGTERM and Ctrl-C ask the loop to stop instead of ending the process.

    Processes of one run agree on the step to stop at, however the signals reach them. A second Ctrl-C
    does what Ctrl-C did before.

    Attributes:
      interrupted: whether it was Ctrl-C.
    """

    def __enter__(self) -> Self:
        self._asked = self._begun = self.interrupted = False
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():  # others cannot catch signals
            self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._ask)
            if jax.process_count() == 1:  # of many processes JAX itself listens
                self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._ask)
        return self

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT:
            before = self._before[signum]
            if self.interrupted and callable(before):
                before(signum, frame)
                return
            self.interrupted = True
            os.write(2, b"\nstopping at the next step; Ctrl-C again stops at once\n")
            if jax.process_count() > 1:  # JAX tells the others, and all stop at one step
                os.kill(os.getpid(), signal.SIGTERM)
                return
        self._asked = True

    @property
    def asked_by(self) -> str:
        """What asked, in the user's words."""
        return "Ctrl-C" if self.interrupted else "SIGTERM"

    def asked(self, step: int) -> bool:
        """Whether to stop before step `step`; to be asked at every step, by every process."""
        if jax.process_count() > 1:
            if not self._begun:
                # Told before the first step, the processes agree on step 1, wherever they begin.
                self._begun = True
                self._asked = multihost_utils.reached_preemption_sync_point(1)
            return self._asked or multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def __exit__(self, *_: object) -> None:
        for signum, before in self._before.items():
            signal.signal(signum, before)


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


def keep_compiled() -> None:
    """Keeps compiled programs in the cache folder, for later processes; at most 1 GiB of them.

    Where JAX was told of a folder of its own, that one is used; where none can be written, none is.
    """
    if jax.config.jax_compilation_cache_dir:
        return
    folder = cache_folder() / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", 2**30)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def keep_memory() -> None:
    """Has this process keep the memory it frees, for good, where its C library is glibc; call it
    before JAX starts its threads.

    A prior's step on a CPU takes and frees hundreds of megabytes, the codec's networks tens for every
    layer. Given back to the system, the same pages come back to be zeroed in every step: a fifth of a
    prior's time, up to half of the networks'.
    """
    if sys.platform != "linux":
        return
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_ARENA_MAX, 1)):
            mallopt(option, value)


def make_state(init: Callable[..., Any], *args: Any, fsdp: bool = False) -> Any:
    """Runs `init(*args)`, compiled, and lays what it makes out over all devices.

    Args:
      init: draws a state from its arguments.
      args: arrays.
      fsdp: spread the large arrays instead of having a copy on every device (`_spread`).
    """
    mesh = _mesh()
    shapes = jax.eval_shape(init, *args)
    layout = jax.tree.map(
        lambda s: NamedSharding(mesh, _spread(s.shape) if fsdp else PartitionSpec()), shapes
    )
    # Drawing params at full optimization takes XLA longer to compile than a small run's first
    # epoch.
    return jax.jit(init, out_shardings=layout, compiler_options=_in_a_hurry())(*args)


# Arrays of fewer elements are copied to every device: spreading them would cost more than it saves.
_SMALL = 2**14


def _spread(shape: tuple[int, ...]) -> PartitionSpec:
    """The one rule of fully sharded training (Rajbhandari et al. 2020, ZeRO-3): a large array is cut
    along its longest axis that the devices divide. Params, gradients, moments and averages, being of
    the same shapes, are cut alike."""
    devices = jax.device_count()
    cut = [i for i, side in enumerate(shape) if side % devices == 0]
    if math.prod(shape) < _SMALL or not cut:
        return PartitionSpec()
    longest = max(cut, key=lambda i: shape[i])
    return PartitionSpec(*(AXIS if i == longest else None for i in range(len(shape))))


def fetch(tree: Any) -> Any:
    """NumPy arrays of a tree, on every process; all of them must ask."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    everywhere = NamedSharding(_mesh(), PartitionSpec())
    return jax.device_get(jax.jit(lambda x: x, out_shardings=everywhere)(tree))


def _in_a_hurry() -> dict[str, Any]:
    """Compiler options that leave out machine code's optimization; memory stays as planned."""
    if jax.default_backend() != "cpu":  # other backends do not know these
        return {}
    return {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def shard_batch(batch: dict[str, np.ndarray], parallel: str) -> dict[str, Any]:
    """Puts a process's share of a batch on its devices, a part on each.

    Args:
      batch: arrays [B_process, ...].
      parallel: "pmap" gives [local devices, B_process / local devices, ...]; "jit" global arrays
        sharded along their first axis.
    """
    sharding = NamedSharding(_mesh(), PartitionSpec(AXIS))
    if parallel == "pmap":
        devices = jax.local_device_count()
        split = {k: v.reshape(devices, -1, *v.shape[1:]) for k, v in batch.items()}
        return jax.device_put(split, sharding)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def compile_step(step: Callable, parallel: str, state: Any) -> Callable:
    """Compiles `step(state, batch, key, *, axis_name)` over all devices.

    The state stays laid out as `state` is, the batch (from `shard_batch`) is spread, the key is the
    same everywhere, and the state given in is used up.
    """
    if parallel == "pmap":
        return jax.pmap(
            partial(step, axis_name=AXIS),
            axis_name=AXIS,
            in_axes=(None, 0, None),
            out_axes=None,
            donate_argnums=(0,),
        )
    layout = jax.tree.map(lambda x: x.sharding, state)
    everywhere = NamedSharding(_mesh(), PartitionSpec())
    return jax.jit(step, donate_argnums=(0,), out_shardings=(layout, everywhere))


def compile_for(step: Callable, *args: Any, tpu: str | None = None) -> tuple[Any, Any]:
    """Compiles a step for one device without running it, for what it would cost.

    Args:
      step: `step(state, batch, key)`; the state is used up.
      args: its arguments, or their shapes.
      tpu: a TPU topology such as "v5e:2x2", compiled for without having one (needs libtpu), or
        None for the device at hand.

    Returns:
      what was lowered, for the device at hand (`cost_analysis`), and what was compiled
      (`memory_analysis`).

    Raises:
      UserError: libtpu is not installed.
    """
    jitted = jax.jit(step, donate_argnums=(0,))
    lowered = jitted.lower(*args)
    if tpu is None:
        return lowered, lowered.compile(_in_a_hurry())
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("planning for a TPU needs its compiler: pip install 'vq_jax[tpu]'")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU to ask
    device = topologies.get_topology_desc(tpu, "tpu").devices[0]
    here = SingleDeviceSharding(device)
    there = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), args)
    return lowered, jitted.lower(*there).compile()

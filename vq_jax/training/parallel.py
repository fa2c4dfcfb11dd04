"""Runs a step on many devices and processes; only this file uses pmap, meshes and shardings."""

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

# Options of glibc's mallopt: no mmap for large blocks, no trimming, one arena for all threads.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8

PARALLEL = ("pmap", "jit")
AXIS = "data"


def _mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def join_processes(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Connects this process with the others; call it before any other function of JAX.

    Args:
      coordinator: HOST:PORT of process 0; all three may be None if the cluster provides them.
      processes: number of processes.
      process: index of this process.

    Raises:
      UserError: the processes did not connect.
    """
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            # The others wait for process 0 while it evaluates.
            shutdown_timeout_seconds=24 * 3600,
        )
    except (ValueError, RuntimeError) as e:
        raise UserError(
            f"the processes did not connect ({first_line(e)}): give coordinator=HOST:PORT, processes and "
            "process, unless the cluster provides them"
        ) from e


class Preemption:
    """A context in which SIGTERM and Ctrl-C ask the training loop to stop.

    All processes of a run agree on the step to stop at, whichever of them gets the signal. A second
    Ctrl-C calls the handler that was installed before.

    Attributes:
      interrupted: whether it was Ctrl-C.
    """

    def __enter__(self) -> Self:
        self._asked = self._begun = self.interrupted = False
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():  # only it can handle signals
            self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._ask)
            if jax.process_count() == 1:  # with several processes, JAX handles it
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
            if jax.process_count() > 1:  # JAX tells the others, so that all stop at the same step
                os.kill(os.getpid(), signal.SIGTERM)
                return
        self._asked = True

    @property
    def asked_by(self) -> str:
        """Name of the signal, for messages."""
        return "Ctrl-C" if self.interrupted else "SIGTERM"

    def asked(self, step: int) -> bool:
        """Whether to stop before step `step`; every process must call it at every step."""
        if jax.process_count() > 1:
            if not self._begun:
                # A signal before the first step is agreed on at step 1, wherever the run begins.
                self._begun = True
                self._asked = multihost_utils.reached_preemption_sync_point(1)
            return self._asked or multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def __exit__(self, *_: object) -> None:
        for signum, before in self._before.items():
            signal.signal(signum, before)


def check(parallel: str, batch_size: int, stride: int = 1) -> None:
    """Raises UserError if the run cannot be spread over the devices.

    Args:
      parallel: one of `PARALLEL`.
      batch_size: number of examples over all devices.
      stride: the perceptual loss is computed on every `stride`-th example. A device's share must be a
        multiple of it, so that the choice does not depend on the number of devices.
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
            f"{batch_size // jax.device_count()} examples of each device"
        )
    if parallel == "pmap" and jax.process_count() > 1:
        raise UserError("parallel='pmap' is for one host; use parallel='jit' on many")


def keep_compiled() -> None:
    """Caches compiled programs on disk for later processes, at most 1 GiB.

    A folder set in JAX's own configuration is used instead. Nothing is cached if the folder cannot be
    written.
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


def disable_malloc_trim() -> None:
    """Makes glibc keep freed memory in this process; call it before JAX starts its threads.

    On a CPU, a prior's step allocates and frees hundreds of megabytes, and the codec's networks tens of
    megabytes a layer. If glibc returns them to the system, the kernel zeroes the same pages again in
    every step: a fifth of a prior's time, up to half of the networks'.
    """
    if sys.platform != "linux":
        return
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_ARENA_MAX, 1)):
            mallopt(option, value)


def make_state(init: Callable[..., Any], *args: Any, fsdp: bool = False) -> Any:
    """Runs `init(*args)`, compiled, with its result on all devices.

    Args:
      init: makes a state.
      args: arrays.
      fsdp: whether to shard large arrays instead of replicating them (`_sharded`).
    """
    mesh = _mesh()
    shapes = jax.eval_shape(init, *args)
    layout = jax.tree.map(
        lambda s: NamedSharding(mesh, _sharded(s.shape) if fsdp else PartitionSpec()), shapes
    )
    # With all optimizations, compiling the initialisation takes longer than an epoch of a small run.
    return jax.jit(init, out_shardings=layout, compiler_options=_fast_compile_options())(*args)


# Smaller arrays are replicated: sharding them would cost more than it saves.
_SMALL = 2**14


def _sharded(shape: tuple[int, ...]) -> PartitionSpec:
    """Returns how fully sharded training lays out an array (Rajbhandari et al. 2020, ZeRO-3).

    A large array is cut along its longest axis that the number of devices divides. Params, gradients,
    moments and averages have the same shapes, and so the same layout.
    """
    devices = jax.device_count()
    cut = [i for i, side in enumerate(shape) if side % devices == 0]
    if math.prod(shape) < _SMALL or not cut:
        return PartitionSpec()
    longest = max(cut, key=lambda i: shape[i])
    return PartitionSpec(*(AXIS if i == longest else None for i in range(len(shape))))


def fetch(tree: Any) -> Any:
    """Returns a tree as NumPy arrays, on every process; all processes must call it."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    everywhere = NamedSharding(_mesh(), PartitionSpec())
    return jax.device_get(jax.jit(lambda x: x, out_shardings=everywhere)(tree))


def _fast_compile_options() -> dict[str, Any]:
    """Compiler options without optimization of machine code; the memory plan stays the same."""
    if jax.default_backend() != "cpu":  # other backends do not have these options
        return {}
    return {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def shard_batch(batch: dict[str, np.ndarray], parallel: str) -> dict[str, Any]:
    """Puts a process's share of a batch on its devices, an equal part on each.

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
    """Compiles `step(state, batch, key, *, axis_name)` for all devices.

    The state keeps the layout of `state`, the batch comes from `shard_batch`, and the key is the same
    everywhere. The state passed in is donated.
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
    """Compiles a step for one accelerator without running it, to learn what it costs.

    On a CPU, the program of an accelerator is compiled: convolutions of `models.convolution` that are
    for CPUs only would count other operations and memory.

    Args:
      step: `step(state, batch, key)`; the state is donated.
      args: its arguments, or their shapes.
      tpu: a TPU topology such as "v5e:2x2" to compile for (needs libtpu, but no TPU); None compiles for
        the local device.

    Returns:
      the lowered program (for `cost_analysis`), and the compiled one (for `memory_analysis`).

    Raises:
      UserError: libtpu is not installed.
    """
    jitted = jax.jit(step, donate_argnums=(0,))
    if jax.default_backend() == "cpu":
        anywhere = [jax.export.DisabledSafetyCheck.platform()]
        program = jax.export.export(jitted, platforms=("tpu",), disabled_checks=anywhere)(*args)
        lowered = jax.jit(program.call, donate_argnums=(0,)).lower(*args)
    else:
        lowered = jitted.lower(*args)
    if tpu is None:
        return lowered, lowered.compile(_fast_compile_options())
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("planning for a TPU needs its compiler: pip install 'vq_jax[tpu]'")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU to ask
    device = topologies.get_topology_desc(tpu, "tpu").devices[0]
    here = SingleDeviceSharding(device)
    there = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), args)
    return lowered, jitted.lower(*there).compile()

"""What a config will cost, before anything is rented or trained."""

import dataclasses
import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from vq_jax import config as configs
from vq_jax import metrics
from vq_jax.errors import UserError
from vq_jax.models import convolution
from vq_jax.tasks.train_tokenizer import make_phases, make_recipe, networks
from vq_jax.training import parallel
from vq_jax.training.report import print_parameters
from vq_jax.training.state import GanState
from vq_jax.training.steps import Recipe, init_state, train_step


@dataclasses.dataclass(frozen=True)
class Device:
    """An accelerator, by its maker's figures.

    Attributes:
      gigabytes: of its memory.
      teraflops: dense peak by dtype, at the precision JAX uses for it by default (TF32 for float32
        on NVIDIA's Ampere and later, one bfloat16 pass on TPUs).
      tpu: a topology with such chips, for the compiler.
    """

    gigabytes: float
    teraflops: dict[str, float]
    tpu: str | None = None


DEVICES = {
    "tpu-v3": Device(16, {"float32": 61.5, "bfloat16": 61.5}),  # a core, which is what JAX sees
    "tpu-v4": Device(32, {"float32": 275, "bfloat16": 275}, "v4:2x2x1"),
    "tpu-v5e": Device(16, {"float32": 197, "bfloat16": 197}, "v5e:2x2"),
    "tpu-v5p": Device(95, {"float32": 459, "bfloat16": 459}, "v5p:2x2x1"),
    "tpu-v6e": Device(32, {"float32": 918, "bfloat16": 918}, "v6e:2x2"),
    "t4": Device(16, {"float32": 8.1, "bfloat16": 8.1}),
    "l4": Device(24, {"float32": 60, "bfloat16": 121}),
    "rtx4090": Device(24, {"float32": 82.6, "bfloat16": 165}),
    "a100-40gb": Device(40, {"float32": 156, "bfloat16": 312}),
    "a100-80gb": Device(80, {"float32": 156, "bfloat16": 312}),
    "h100": Device(80, {"float32": 494, "bfloat16": 989}),
    "h200": Device(141, {"float32": 494, "bfloat16": 989}),
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one training step takes on one device.

    Attributes:
      flops: floating-point operations, as XLA counts them before it optimizes.
      state_bytes: params, optimizers, averages and statistics.
      temporary_bytes: activations, gradients and workspace while the step runs.
      peak_bytes: all that must fit at once, the batch included.
    """

    flops: float
    state_bytes: int
    temporary_bytes: int
    peak_bytes: int


def step_cost(config: ConfigDict, batch_size: int, device: str | None = None) -> Cost:
    """Compiles the step of the config's last phase, the heaviest, and reads what it takes.

    Args:
      config: checked.
      batch_size: images on this one device.
      device: a TPU of `DEVICES` to compile for; otherwise the device at hand. The CPU's compiler
        undoes rematerialisation, so its figures are those without.
    """
    recipe = make_recipe(config)
    return _step_cost(config, recipe, _state_shapes(config, recipe), batch_size, device)


def _state_shapes(config: ConfigDict, recipe: Recipe) -> GanState:
    init = partial(init_state, recipe, image_shape=configs.image_shape(config))
    return jax.eval_shape(init, jax.random.key(0))


def _step_cost(
    config: ConfigDict, recipe: Recipe, state: GanState, batch_size: int, device: str | None
) -> Cost:
    step = partial(train_step, recipe=recipe, phase=make_phases(config)[-1])
    shape = (batch_size, *configs.image_shape(config))
    batch = {"image": jax.ShapeDtypeStruct(shape, jnp.float32)}
    key = jax.eval_shape(lambda: jax.random.key(0))
    tpu = DEVICES[device].tpu if device else None
    with convolution.plain():  # the operations, and the memory, of other devices than the CPU
        lowered, compiled = parallel.compile_for(step, state, batch, key, tpu=tpu)
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    fresh = max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes)
    return Cost(
        flops=float(lowered.cost_analysis()["flops"]),
        state_bytes=sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)),
        temporary_bytes=memory.temp_size_in_bytes,
        peak_bytes=held + fresh,
    )


def plan(
    config: ConfigDict | None = None,
    *,
    workdir: Path = Path("runs/default"),
    devices: int = 1,
    share: float = 0.4,
    device: str = "",
) -> None:
    """`--mode=plan`: prints what training under a config takes.

    Args:
      config: a tokenizer's.
      workdir: a run whose config is taken where none is given.
      devices: how many the batch is spread over.
      share: of a device's peak that training reaches, in (0, 1].
      device: a TPU of `DEVICES` to compile for, or "" for the device at hand.
    """
    if config is None:
        config = configs.load(workdir / "config.json")
    else:
        configs.check(config)
    if configs.is_prior(config):
        raise UserError("plan counts a tokenizer's step: name a tokenizer's config or --workdir")
    if not 0 < share <= 1:
        raise UserError(f"--share={share}: use a number above 0, up to 1")
    if device and (device not in DEVICES or DEVICES[device].tpu is None):
        known = ", ".join(name for name, d in DEVICES.items() if d.tpu)
        raise UserError(f"--device={device}: it can be compiled for {known}, or for what is here")
    if devices < 1:
        raise UserError(f"--devices={devices}: use 1 or more")
    if config.data.batch_size % devices:
        raise UserError(
            f"--devices={devices}: data.batch_size {config.data.batch_size} does not divide by it"
        )
    console = Console(highlight=False, soft_wrap=True)
    recipe = make_recipe(config)
    state = _state_shapes(config, recipe)
    print_parameters(console, networks(state))

    _, grid = configs.grids(config, recipe.tokenizer)
    codes, num_codes = math.prod(grid), recipe.tokenizer.quantizer.num_codes
    batch = config.data.batch_size // devices
    compiler = device or jax.default_backend()
    with console.status(f"compiling for {compiler}"):
        cost = _step_cost(config, recipe, state, batch, device or None)

    table = Table(title=f"a step of {batch} images on one device", title_justify="left")
    table.add_column("what")
    table.add_column("value", justify="right")
    bits = metrics.bits_per_pixel(num_codes, codes, config.data.resolution**2)
    rows = {
        "codes an image": f"{codes} ({'x'.join(map(str, grid))}) of {num_codes:,}",
        "bits per pixel": f"{bits:.4f}",
        "floating-point operations": f"{cost.flops:.3g}",
        "the same for one image": f"{cost.flops / batch:.3g}",
        "params, optimizers, averages": _gigabytes(cost.state_bytes),
        f"activations ({compiler})": _gigabytes(cost.temporary_bytes),
        f"peak memory ({compiler})": _gigabytes(cost.peak_bytes),
    }
    for what, value in rows.items():
        table.add_row(what, value)
    console.print(table)

    table = Table(
        title=f"at {share:.0%} of the peak, {config.dtype}, {devices} of them",
        title_justify="left",
    )
    for name in ("device", "memory", "the step fits", "images/s", "hours for this config"):
        table.add_column(name, justify="left" if name == "device" else "right")
    images = config.data.batch_size * sum(config.phases.values())
    for name, kind in DEVICES.items():
        rate = share * kind.teraflops[config.dtype] * 1e12 * devices / (cost.flops / batch)
        limit = 0.95 if name.startswith("tpu") else 0.75  # JAX takes 75% of a GPU by default
        fits = "yes" if cost.peak_bytes < limit * 1e9 * kind.gigabytes else "no"
        hours = images / rate / 3600
        table.add_row(name, f"{kind.gigabytes:g} GB", fits, f"{rate:,.0f}", f"{hours:,.2f}")
    console.print(table)
    if compiler == "cpu":
        console.print(
            "Memory is by the CPU's compiler: about what others take, but it undoes "
            "rematerialisation. --device=tpu-v5e asks a TPU's."
        )
    console.print(
        "Every step is counted as one of the last phase. What share is reached depends on widths "
        "and batch: measure it with a short run."
    )


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.3f} GB"

"""The cost of a config: parameters, FLOPs, memory, and time by device."""

import dataclasses
from functools import partial
from pathlib import Path

import jax
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from vq_jax import config as configs
from vq_jax import modalities
from vq_jax.errors import UserError
from vq_jax.runs import find
from vq_jax.tasks.train_tokenizer import make_phases, make_recipe, networks
from vq_jax.training import parallel
from vq_jax.training.report import print_parameters
from vq_jax.training.state import GanState
from vq_jax.training.steps import Recipe, init_state, train_step


@dataclasses.dataclass(frozen=True)
class Device:
    """An accelerator, with its maker's figures.

    Attributes:
      gigabytes: memory.
      teraflops: dense peak by dtype, at the precision that JAX uses by default (TF32 for float32 on
        NVIDIA's Ampere and later, one bfloat16 pass on TPUs).
      tpu: a topology of such chips, for the compiler.
    """

    gigabytes: float
    teraflops: dict[str, float]
    tpu: str | None = None


DEVICES = {
    # One core, which is a device for JAX.
    "tpu-v3": Device(16, {"float32": 61.5, "bfloat16": 61.5}),
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
    """The cost of one training step on one device.

    Attributes:
      flops: floating-point operations, as XLA counts them before optimization.
      state_bytes: params, optimizers, averages and statistics.
      temporary_bytes: activations, gradients and workspace of the step.
      peak_bytes: all memory of the step, including the batch.
    """

    flops: float
    state_bytes: int
    temporary_bytes: int
    peak_bytes: int


def step_cost(config: ConfigDict, batch_size: int, device: str | None = None) -> Cost:
    """Compiles the step of the config's last phase, the most expensive one.

    Args:
      config: checked.
      batch_size: number of examples on this device.
      device: a TPU of `DEVICES` to compile for; None is the local device. The CPU's compiler undoes
        rematerialisation, so its figures are those without.
    """
    recipe = make_recipe(config)
    return _step_cost(config, recipe, _state_shapes(config, recipe), batch_size, device)


def _state_shapes(config: ConfigDict, recipe: Recipe) -> GanState:
    init = partial(init_state, recipe, spec=configs.spec_of(config))
    return jax.eval_shape(init, jax.random.key(0))


def _step_cost(
    config: ConfigDict, recipe: Recipe, state: GanState, batch_size: int, device: str | None
) -> Cost:
    step = partial(train_step, recipe=recipe, phase=make_phases(config)[-1])
    spec = configs.spec_of(config)
    batch = {"x": jax.ShapeDtypeStruct((batch_size, *spec.shape), spec.dtype)}
    key = jax.eval_shape(lambda: jax.random.key(0))
    tpu = DEVICES[device].tpu if device else None
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
    """`--mode=plan`: prints the cost of training with a config.

    Args:
      config: a tokenizer's.
      workdir: a run whose config is used if none is given.
      devices: number of devices that share the batch.
      share: of a device's peak that training reaches, in (0, 1].
      device: a TPU of `DEVICES` to compile for; "" is the local device.
    """
    if config is None:
        config = configs.load(find(workdir) / configs.FILE)
    else:
        configs.check(config)
    if (kind := configs.kind_of(config)) != "tokenizer":
        raise UserError(f"config is a {kind}'s: plan needs that of a tokenizer")
    if not 0 < share <= 1:
        raise UserError(f"share is {share}: use a number above 0 and at most 1")
    if device and (device not in DEVICES or DEVICES[device].tpu is None):
        known = ", ".join(name for name, d in DEVICES.items() if d.tpu)
        raise UserError(f"device is {device!r}: use one of {known}, or none for the local device")
    if devices < 1:
        raise UserError(f"devices is {devices}: use 1 or more")
    if config.data.batch_size % devices:
        raise UserError(
            f"devices is {devices}, which does not divide data.batch_size={config.data.batch_size}"
        )
    console = Console(highlight=False, soft_wrap=True)
    recipe = make_recipe(config)
    state = _state_shapes(config, recipe)
    print_parameters(console, networks(state))
    batch_size = config.data.batch_size // devices
    compiler = device or jax.default_backend()
    with console.status(f"compiling for {compiler}"):
        cost = _step_cost(config, recipe, state, batch_size, device or None)
    console.print(_step_table(config, recipe, cost, batch_size, compiler))
    console.print(_device_table(config, cost, batch_size, devices, share))
    if compiler == "cpu":
        console.print(
            "Memory is that of the CPU's compiler: close to other devices', but without "
            "rematerialisation. The device tpu-v5e compiles for a TPU."
        )
    console.print(
        "Every step is counted as one of the last phase. The share of the peak depends on widths "
        "and batch: measure it with a short run."
    )


def _step_table(
    config: ConfigDict, recipe: Recipe, cost: Cost, batch_size: int, compiler: str
) -> Table:
    """The cost of one step."""
    codes, _ = configs.code_spec(config, recipe.tokenizer)
    modality = modalities.of(config)
    noun, unit = modality.noun, modality.unit
    bits = codes.bits / modality.units(configs.spec_of(config).shape)
    shape = "x".join(map(str, codes.shape))
    table = Table(title=f"a step of {batch_size} {noun}s on one device", title_justify="left")
    table.add_column("what")
    table.add_column("value", justify="right")
    for what, value in {
        f"codes per {noun}": f"{codes.length} ({shape}) of {codes.num_codes:,}",
        f"bits per {unit}": f"{bits:.4f}",
        "floating-point operations": f"{cost.flops:.3g}",
        f"the same per {noun}": f"{cost.flops / batch_size:.3g}",
        "params, optimizers, averages": _gigabytes(cost.state_bytes),
        f"activations ({compiler})": _gigabytes(cost.temporary_bytes),
        f"peak memory ({compiler})": _gigabytes(cost.peak_bytes),
    }.items():
        table.add_row(what, value)
    return table


def _device_table(
    config: ConfigDict, cost: Cost, batch_size: int, devices: int, share: float
) -> Table:
    """The time of the whole run, by device."""
    noun = modalities.of(config).noun
    table = Table(
        title=f"at {share:.0%} of the peak, {config.dtype}, number of devices: {devices}",
        title_justify="left",
    )
    for name in ("device", "memory", "the step fits", f"{noun}s/s", "hours for this config"):
        table.add_column(name, justify="left" if name == "device" else "right")
    examples = config.data.batch_size * sum(config.phases.values())
    for name, one in DEVICES.items():
        rate = share * one.teraflops[config.dtype] * 1e12 * devices / (cost.flops / batch_size)
        limit = 0.95 if name.startswith("tpu") else 0.75  # JAX takes 75% of a GPU by default
        fits = "yes" if cost.peak_bytes < limit * 1e9 * one.gigabytes else "no"
        hours = examples / rate / 3600
        table.add_row(name, f"{one.gigabytes:g} GB", fits, f"{rate:,.0f}", f"{hours:,.2f}")
    return table


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.3f} GB"

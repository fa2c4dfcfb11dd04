"""The check of a config before anything is run: wrong values fail here, in one line."""

import importlib.util
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from vq_jax import modalities
from vq_jax.bounds import Bounds, bounds_of
from vq_jax.config.build import (
    make_condition,
    make_discriminator,
    make_draw,
    make_prior,
    make_tokenizer,
    spec_of,
    trace_shapes,
)
from vq_jax.config.schema import (
    MODELS,
    PHASES,
    SECTIONS,
    TABLES,
    fields_of,
    kind_of,
    look_up,
    sections,
)
from vq_jax.errors import UserError, check_seed, first_line
from vq_jax.losses import ADVERSARIAL, GENERATOR
from vq_jax.modalities import MODALITIES


def check(config: ConfigDict) -> None:
    """Raises UserError for a value that no run could use."""
    kind = kind_of(config)
    _check_common(config, kind)
    CHECKS[kind](config)


def _check_common(config: ConfigDict, kind: str) -> None:
    modality = look_up(MODALITIES, config.modality, "modality")
    if "model" in config:
        served = look_up(MODELS, config.model.name, "model.name").modality
        if served != config.modality:
            raise UserError(
                f"modality is {config.modality!r}, and model.name={config.model.name!r} is for {served!r}"
            )
    missing = fields_of(modality.data_fields).keys() - config.data.keys()
    if missing:
        raise UserError(
            f"modality is {config.modality!r}, and data has no field {min(missing)!r}: make the config "
            f"with base, or with base_prior(..., modality={config.modality!r})"
        )
    _one_of(("float32", "bfloat16"), config.dtype, "dtype")
    if min(config.phases.values()) < 0 or not sum(config.phases.values()):
        raise UserError("phases: lengths in steps, none below 0 and not all 0")
    for name, classes in sections(kind, config.modality).items():
        part = config[name] if name else config
        prefix = f"{name}." if name else ""
        for cls in classes:
            _check_bounds(part, bounds_of(cls), prefix)
    for name, table in TABLES[kind].items():
        _check_section(table, config[name], name)
    if config.wandb and not importlib.util.find_spec("wandb"):
        raise UserError("wandb is set, and it is not installed: pip install 'vq_jax[wandb]'")
    check_seed(config.seed)
    _check_not_nan(config)
    modalities.of(config).check(config)


def _check_bounds(part: Mapping[str, Any], bounds: Mapping[str, Bounds], prefix: str) -> None:
    for field, limits in bounds.items():
        if field in part and part[field] is not None:
            limits.check(part[field], prefix + field)


def _check_not_nan(config: ConfigDict, prefix: str = "") -> None:
    for field, value in config.items():
        if isinstance(value, ConfigDict):
            _check_not_nan(value, f"{prefix}{field}.")
        elif isinstance(value, float) and math.isnan(value):
            raise UserError(f"{prefix}{field} is nan: use a number")


def _one_of(names: Iterable[str], value: str, place: str) -> None:
    look_up(dict.fromkeys(names), value, place)


def _check_source(config: ConfigDict, *others: str) -> None:
    if not config.data.source.startswith("tfds:"):
        names = (*modalities.of(config).sources(), *others, "tfds:NAME")
        _one_of(names, config.data.source, "data.source")


def _check_section(table: Mapping[str, Any], found: ConfigDict, place: str) -> None:
    """Checks the fields of a section that `schema.section` made, and those of its `inner` one."""
    maker = look_up(table, found.name, f"{place}.name")
    fields = fields_of(maker)
    for field, value in found.items():
        if field != "name" and field not in fields:
            known = ", ".join(fields)
            raise UserError(
                f"{place}.{field} is no field of {place}.name={found.name!r} (known: {known}); a "
                "config file sets the name in base(), which adds the fields"
            )
        if field == "inner":
            _check_section(table, value, f"{place}.inner")
        if field in ("levels", "scales") and isinstance(value, tuple) and not value:
            raise UserError(f"{place}.{field} is (): give at least one")
    _check_bounds(found, bounds_of(maker), f"{place}.")


# --- tokenizers ------------------------------------------------------------------------------------


def _check_tokenizer(config: ConfigDict) -> None:
    modality = modalities.of(config)
    bounds = _quantizer_bounds(config.quantizer)
    for field, ramp in config.anneal.items():
        _check_ramp(ramp, f"anneal.{field}")
        for value in ramp[:2]:
            bounds.get(field, Bounds()).check(value, f"anneal.{field}")
        if field == "rate_weight" and ramp and ramp[1] != (last := _of_quantizer(config, field)):
            raise UserError(
                f"anneal.rate_weight ends at {ramp[1]}, and codes are chosen with rate_weight={last} after "
                "training: make them equal"
            )
    _check_source(config)
    look_up(modality.losses, config.loss.reconstruction, "loss.reconstruction")
    look_up(ADVERSARIAL, config.adversarial.loss, "adversarial.loss")
    _one_of(("", *GENERATOR), config.adversarial.generator_loss, "adversarial.generator_loss")
    if config.loss.data_variance <= 0:
        raise UserError(f"loss.data_variance is {config.loss.data_variance}: use more than 0")
    if "perceptual_from" in config.loss:
        _one_of(PHASES, config.loss.perceptual_from, "loss.perceptual_from")
    _check_shapes(config)


def _of_quantizer(config: ConfigDict, field: str) -> Any:
    """Returns a field of the quantizer, or of its inner one."""
    quantizer = config.quantizer
    while field not in quantizer:
        quantizer = quantizer.inner
    return quantizer[field]


def _quantizer_bounds(quantizer: ConfigDict) -> dict[str, Bounds]:
    found = bounds_of(TABLES["tokenizer"]["quantizer"][quantizer.name])
    return found | (_quantizer_bounds(quantizer.inner) if "inner" in quantizer else {})


def _check_ramp(ramp: tuple, place: str) -> None:
    if ramp and (len(ramp) != 4 or not 0 <= ramp[2] < ramp[3]):
        raise UserError(f"{place} is {tuple(ramp)}: use (from, to, first step, last step), or ()")


def _check_shapes(config: ConfigDict) -> None:
    """Runs the models on shapes alone, so that what cannot fit together fails early."""
    spec = spec_of(config)
    try:
        shapes = trace_shapes(config)
    except (ValueError, TypeError) as e:
        raise UserError(f"model or quantizer: {first_line(e)}") from e
    if config.loss.quality_power != 1 and not make_tokenizer(config).takes_quality:
        raise UserError(
            f"loss.quality_power is for models that take a quality: {config.model.name!r} takes none"
        )
    if "params" not in shapes.variables:
        raise UserError(
            f"model.name={config.model.name!r} has no params to train: a prior's config names it as "
            f"tokenizer={config.model.name!r}"
        )
    modality = modalities.of(config)
    if (shape := modality.output_shape(shapes.output.shape)[1:]) != spec.shape:
        raise UserError(
            f"model.name={config.model.name!r} makes {modality.noun}s of shape {shape} from "
            f"{spec.shape}: they do not halve as often as the model asks"
        )
    discriminator = make_discriminator(config)
    if discriminator is None:
        return
    x = jax.ShapeDtypeStruct((2, *spec.shape), spec.dtype)
    key = jax.random.key(0)
    try:
        logits = jax.eval_shape(lambda k, x: discriminator.init_with_output(k, x)[0], key, x)
    except (ValueError, TypeError) as e:
        raise UserError(f"discriminator: {first_line(e)}") from e
    if 0 in logits.shape:
        raise UserError(
            f"discriminator: {modality.noun}s of shape {x.shape[1:]} are too small for its layers"
        )


# --- priors ----------------------------------------------------------------------------------------


def _check_prior(config: ConfigDict) -> None:
    conditions = modalities.of(config).conditions
    _check_section(conditions, config.condition, "condition")
    _check_source(config, "codes")
    if config.data.source == "codes" and config.condition.name != "none":
        raise UserError(
            f"condition.name is {config.condition.name!r}, and data.source 'codes' has no examples to "
            "make the condition from: use another data.source"
        )
    if config.fsdp and config.parallel != "jit":
        raise UserError("fsdp shards the params: it needs parallel='jit'")
    _check_ramp(config.loss.permute, "loss.permute")
    if not all(0 <= share <= 1 for share in config.loss.permute[:2]):
        raise UserError(f"loss.permute is {tuple(config.loss.permute)}: shares are 0 to 1")
    _one_of(("confidence", "halton"), config.sampling.order, "sampling.order")
    if make_draw(config).guided and not config.loss.label_dropout:
        raise UserError(
            "sampling.guidance needs examples without a label: set loss.label_dropout above 0"
        )
    make_condition(config)
    if 0 < config.eval_samples < 8:
        raise UserError(f"eval_samples is {config.eval_samples}: use 8 or more, or 0")
    # The codes are known once the tokenizer is open: any will do for a check of the fields.
    stand_in = config.copy_and_resolve_references()
    with stand_in.unlocked():
        stand_in.codes.update({"num_codes": 2, "books": 1, "classes": ("",), "condition": ()})
        stand_in.codes.update(
            {"grid": (5,), "grids": ((1, 1), (2, 2)), "latent": 1, "radices": (2,)}
        )
    make_prior(stand_in)


CHECKS = {"tokenizer": _check_tokenizer, "prior": _check_prior}
assert CHECKS.keys() == SECTIONS.keys()

"""Configs: every field with its default, the check of a config, and the modules it describes."""

import dataclasses
import difflib
import importlib.util
import inspect
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, config_dict

from vq_jax.data.degrade import CONDITIONS
from vq_jax.data.sources import SOURCES
from vq_jax.errors import UserError, check_seed, first_line
from vq_jax.files import write
from vq_jax.losses import ADVERSARIAL, GENERATOR, RECONSTRUCTION
from vq_jax.models import DISCRIMINATORS, MODELS, PRIORS, Tokenizer, Transformer
from vq_jax.quantizers import QUANTIZERS, SCHEDULED, Quantizer
from vq_jax.sampling import Draw

# The least that a number may be.
_LEAST = {
    "log_every": 1,
    "save_every": 1,
    "keep": 1,
    "skip_limit": 1,
    "eval_every": 0,
    "kmeans_batches": 0,
    "data.batch_size": 1,
    "data.resolution": 1,
    "data.workers": 0,
    "loss.perceptual_stride": 1,
    "prior.layers": 1,
    "prior.width": 4,
    "prior.heads": 1,
    "prior.hidden": 0,
    "sampling.steps": 1,
    "sampling.choice_temperature": 0.0,
    "eval_samples": 0,
    "eval_references": 8,
    "adversarial.r1_every": 1,
}
# The least and the most of a quantizer's fields, where it has them.
_QUANTIZER_LEAST = {
    "num_codes": 2,
    "dim": 1,
    "bits": 1,
    "code_dim": 0,
    "heads": 1,
    "decay": 0.0,
    "dropout": 0.0,
    "kmeans_iterations": 0,
    "revive_below": 0.0,
    "convolutions": 0,
    "convolution_share": 0.0,
    "entropy_group": 0,
    "temperature": 1e-6,
}
_QUANTIZER_MOST = {
    "bits": 24,
    "decay": 1.0,
    "dropout": 1.0,
    "revive_below": 1.0,
    "convolution_share": 1.0,
}
PHASES = ("autoencoder", "quantizer", "joint", "adversarial")
# What a model's or a module's maker is given by the program rather than by its config section.
_GIVEN = {"resolution", "channels", "dtype", "parent", "name", "causal", "target_aware"}


def fields_of(maker: Any) -> dict[str, Any]:
    """The config fields of a function or Flax module, with their defaults."""
    if dataclasses.is_dataclass(maker):
        return {
            f.name: f.default for f in dataclasses.fields(maker) if f.name not in _GIVEN and f.init
        }
    parameters = inspect.signature(maker).parameters.values()
    return {
        p.name: p.default for p in parameters if p.name not in _GIVEN and p.default is not p.empty
    }


def section(table: Mapping[str, Any], name: str, **changes: Any) -> ConfigDict:
    """A config section for one entry of a table: its name and all its fields, some changed.

    A field `inner` is a section of the same table: "residual/fsq" names both, "residual" takes "vq".
    """
    name, _, inner = name.partition("/")
    maker = _one_of(table, name, "the section's name")
    fields = fields_of(maker)
    if "inner" in fields:
        fields["inner"] = section(table, inner or "vq")
    elif inner:
        raise UserError(f"{name} takes nothing inside it: {name!r}, not '{name}/{inner}'")
    for field in changes:
        if field not in fields:
            raise UserError(f"{name} has no field {field!r}{_near(field, fields)}")
    return ConfigDict({"name": name, **fields, **changes}, convert_dict=False)


def _near(name: str, names: Any) -> str:
    names = list(names)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    return f"; did you mean {' or '.join(near)}?" if near else f" (known: {', '.join(names)})"


def _one_of(table: Mapping[str, Any], name: str, field: str) -> Any:
    if name not in table:
        raise UserError(f"{field} is {name!r}{_near(name, table)}")
    return table[name]


def _optim(**changes: Any) -> ConfigDict:
    config = ConfigDict()
    config.lr = 1e-4  # peak learning rate
    config.lr_end = 0.0  # where cosine ends
    config.schedule = "constant"  # or "cosine"
    config.warmup_steps = 0
    config.b1 = 0.9
    config.b2 = 0.99
    config.weight_decay = 0.0  # of kernels only
    config.clip_norm = 0.0  # largest gradient norm; 0 clips nothing
    config.accumulate = 1  # batches an update
    config.update(changes)
    return config


def _common() -> ConfigDict:
    """The fields that every training has."""
    config = ConfigDict()
    config.seed = 0
    config.parallel = "pmap"  # one host; "jit" for many
    config.dtype = "float32"  # of the computation, or "bfloat16"; params are always float32
    config.log_every = 20  # steps between lines of metrics.jsonl
    config.save_every = 500  # steps between checkpoints
    config.keep = 2  # how many checkpoints are kept
    config.skip_limit = 10  # steps in a row, not finite, before going back to the last checkpoint
    config.eval_every = 0  # steps between evaluations; 0 evaluates at the end only
    config.tensorboard = True  # where tensorboardX is installed
    config.wandb = ""  # project to log to, with wandb installed
    config.start_from = (
        ""  # a run, or what import or export wrote, whose weights training starts from
    )

    config.data = data = ConfigDict()
    data.source = "emoji"  # emoji, photos, folder, or tfds:NAME
    data.folder = ""  # for source=folder
    data.dir = ""  # where TFDS keeps prepared data; "" is its default, ~/tensorflow_datasets
    data.val_fraction = 0.1  # held out, where the data set has no split for it
    data.resolution = 32
    data.channels = 3
    data.resize = config_dict.placeholder(int)  # shorter side; None: resolution; 0: as it is
    data.crop = "center"  # or "random", in training
    data.flip = True  # mirror half of the training images
    data.batch_size = 64  # over all devices
    data.workers = 0  # processes that decode; 0 decodes in threads
    return config


def base(
    model: str = "vqgan", quantizer: str = "vq", discriminator: str = "patchgan"
) -> ConfigDict:
    """Every field a config has, with its default; a config file changes what it means to.

    Args:
      model: name in `MODELS`; its fields become `config.model`.
      quantizer: name in `QUANTIZERS`; its fields become `config.quantizer`. "residual/fsq" is a
        residual quantizer of FSQs, whose fields are `config.quantizer.inner`.
      discriminator: name in `DISCRIMINATORS`; its fields become `config.discriminator`.

    Returns:
      a locked ConfigDict: a field that is not there cannot be set.
    """
    config = _common()
    config.eval_lpips = True  # LPIPS in evaluations, which costs more than the rest of one

    config.model = section(MODELS, model)
    config.quantizer = section(QUANTIZERS, quantizer)
    config.kmeans_batches = 8  # batches whose latents start the codebook; 0 leaves it random
    # Quantizer fields that change: (from, to, first step, last step); () keeps a field as it is.
    config.anneal = ConfigDict({name: () for name in SCHEDULED if _has(config.quantizer, name)})

    # Steps of each phase: the autoencoder alone, without quantization; the quantizer on the frozen
    # encoder; everything jointly; then with the adversary.
    config.phases = ConfigDict({name: 0 for name in PHASES})

    config.loss = loss = ConfigDict()
    loss.reconstruction = "l1"  # or "l2"
    loss.reconstruction_weight = 1.0
    loss.data_variance = 1.0  # the reconstruction loss is divided by it
    loss.codebook_weight = 1.0  # on all that the quantizer adds
    loss.perceptual_weight = 1.0  # LPIPS; 0 runs without
    loss.perceptual_from = "autoencoder"  # first phase in which LPIPS counts
    loss.perceptual_stride = 1  # LPIPS looks at every n-th image of a batch

    config.discriminator = section(DISCRIMINATORS, discriminator)
    config.adversarial = adversarial = ConfigDict()
    adversarial.loss = "hinge"  # or "vanilla", "non_saturating"
    adversarial.generator_loss = ""  # "linear" or "non_saturating"; "" is the one of `loss`
    adversarial.weight = 0.8
    adversarial.adaptive_limit = 1e4  # clip of the adaptive weight; 0 keeps the weight fixed
    adversarial.warmup_steps = 0  # the discriminator alone learns, at the phase's start
    adversarial.ramp_steps = 0  # then the generator's weight grows from 0
    adversarial.r1_weight = 0.0
    adversarial.r1_every = 16
    adversarial.lecam_weight = 0.0
    adversarial.lecam_decay = 0.999

    config.optim = _optim()
    config.disc_optim = _optim()
    config.ema_decay = 0.999  # of the params used in evaluation
    return config.lock()


def base_prior(prior: str = "causal", condition: str = "none") -> ConfigDict:
    """Every field of a prior's config, with its default.

    Args:
      prior: name in `PRIORS`; its fields become `config.prior`.
      condition: name in `CONDITIONS`: what it is given beside a label.

    Returns:
      a locked ConfigDict.
    """
    config = _common()
    config.tokenizer = "runs/default"  # the run whose codes are learned
    config.fsdp = False  # spread params and optimizer over the devices (parallel="jit")
    config.data.source = "emoji"  # also "codes", with data.folder a folder that tokenize wrote
    config.condition = section(CONDITIONS, condition)
    config.prior = section(PRIORS, prior)
    config.phases = ConfigDict({"prior": 0})  # steps

    config.loss = loss = ConfigDict()
    loss.label_smoothing = 0.0
    loss.label_dropout = 0.1  # share of images without their label, for guidance
    loss.least_masked = 0.0  # masked: no image has a smaller share of its codes masked
    # random_order: share of images in an order of their own, the others row by row: (from, to, first
    # step, last step); () draws an order for all, to the end.
    loss.permute = ()

    # What --mode=sample and the edits do where they are not told otherwise.
    config.sampling = ConfigDict(
        {
            **{f.name: f.default for f in dataclasses.fields(Draw)},
            "steps": 12,  # masked
            "choice_temperature": 4.5,  # masked: chance in which codes are settled first
            "order": "confidence",  # masked, or "halton"
        }
    )
    config.eval_samples = 256  # how many are drawn to be judged; 0 judges none
    config.eval_references = 1024  # training images they are held against
    config.optim = _optim(b2=0.95, weight_decay=0.05, clip_norm=1.0)
    config.ema_decay = 0.999

    # Written down when training starts: what the tokenizer and the data say.
    config.codes = codes = ConfigDict()
    codes.num_codes = 0
    codes.books = 1  # codes a position
    codes.grid = ()
    codes.condition = ()  # grid of the condition's codes
    codes.image = ()  # (H, W, C)
    codes.classes = ()  # names
    return config.lock()


def _at(config: ConfigDict, place: str) -> Any:
    """The value at a place such as "optim.lr", or None where there is no such field."""
    value: Any = config
    for part in place.split("."):
        if part not in value:
            return None
        value = value[part]
    return value


def _has(quantizer: ConfigDict, field: str) -> bool:
    return field in quantizer or ("inner" in quantizer and _has(quantizer.inner, field))


def _name(quantizer: Mapping[str, Any]) -> str:
    """The name that `section` takes for this section."""
    name = quantizer["name"]
    return f"{name}/{_name(quantizer['inner'])}" if "inner" in quantizer else name


def check(config: ConfigDict) -> None:
    """Raises UserError, in one line, for a value that no run could use."""
    _check_common(config)
    if is_prior(config):
        _check_prior(config)
    else:
        _check_tokenizer(config)


def is_prior(config: ConfigDict) -> bool:
    """Whether a config is of a prior over codes, and not of a tokenizer."""
    return "prior" in config


def holds_prior(workdir: Path) -> bool:
    """Whether a run's folder is of a prior."""
    try:
        return "prior" in json.loads((workdir / "config.json").read_text())
    except (OSError, ValueError):
        return False  # whoever opens it will say what is wrong


def _check_common(config: ConfigDict) -> None:
    _one_of(dict.fromkeys(("float32", "bfloat16")), config.dtype, "dtype")
    if min(config.phases.values()) < 0 or not sum(config.phases.values()):
        raise UserError("phases: lengths in steps, none below 0 and not all 0")
    for place, least in _LEAST.items():
        value = _at(config, place)
        if value is not None and value < least:
            raise UserError(f"{place} is {value}: use {least} or more")
    if config.wandb and not importlib.util.find_spec("wandb"):
        raise UserError("wandb is not installed: pip install 'vq_jax[wandb]', or --config.wandb=''")
    check_seed(config.seed)
    _check_numbers(config)
    if config.data.channels not in (1, 3):
        raise UserError(f"data.channels is {config.data.channels}: use 1 or 3")


def _check_numbers(config: ConfigDict, prefix: str = "") -> None:
    for field, value in config.items():
        if isinstance(value, ConfigDict):
            _check_numbers(value, f"{prefix}{field}.")
        elif isinstance(value, float) and math.isnan(value):
            raise UserError(f"{prefix}{field} is nan: use a number")


def _check_source(config: ConfigDict, *others: str) -> None:
    if not config.data.source.startswith("tfds:"):
        names = [*SOURCES, *others, "tfds:NAME"]
        _one_of(dict.fromkeys(names), config.data.source, "data.source")


def _check_prior(config: ConfigDict) -> None:
    for table, place in ((PRIORS, "prior"), (CONDITIONS, "condition")):
        _check_section(table, config[place], place)
    _check_source(config, "codes")
    if config.data.source == "codes" and config.condition.name != "none":
        raise UserError(
            f"condition.name is {config.condition.name!r}, which is made from images: "
            "use a data.source of images, not 'codes'"
        )
    if config.fsdp and config.parallel != "jit":
        raise UserError("fsdp spreads the params: it needs --config.parallel=jit")
    for place, most in (
        ("loss.label_smoothing", 1.0),
        ("loss.label_dropout", 1.0),
        ("loss.least_masked", 1.0),
        ("prior.dropout", 0.99),
    ):
        if not 0 <= _at(config, place) <= most:
            raise UserError(f"{place} is {_at(config, place)}: use 0 to {most:g}")
    _check_ramp(config.loss.permute, "loss.permute")
    if not all(0 <= share <= 1 for share in config.loss.permute[:2]):
        raise UserError(f"loss.permute is {tuple(config.loss.permute)}: shares are 0 to 1")
    _one_of(dict.fromkeys(("confidence", "halton")), config.sampling.order, "sampling.order")
    if make_draw(config).guided and not config.loss.label_dropout:
        raise UserError(
            "sampling.guidance needs images without a label: loss.label_dropout above 0"
        )
    make_condition(config)
    if 0 < config.eval_samples < 8:
        raise UserError(f"eval_samples is {config.eval_samples}: use 8 or more, or 0")
    facts = {"num_codes": 2, "grid": (4, 4), "books": 1, "classes": 1, "condition": ()}
    _make_prior(config, **facts)


def _check_tokenizer(config: ConfigDict) -> None:
    for table, place in (
        (MODELS, "model"),
        (QUANTIZERS, "quantizer"),
        (DISCRIMINATORS, "discriminator"),
    ):
        _check_section(table, config[place], place)
    for field, ramp in config.anneal.items():
        _check_ramp(ramp, f"anneal.{field}")
        for value in ramp[:2]:
            _check_range(field, value, f"anneal.{field}")
    _check_quantizer(config.quantizer, "quantizer")
    _check_source(config)
    _one_of(RECONSTRUCTION, config.loss.reconstruction, "loss.reconstruction")
    _one_of(ADVERSARIAL, config.adversarial.loss, "adversarial.loss")
    _one_of(
        {"": None, **GENERATOR}, config.adversarial.generator_loss, "adversarial.generator_loss"
    )
    _one_of(dict.fromkeys(PHASES), config.loss.perceptual_from, "loss.perceptual_from")
    if config.loss.data_variance <= 0:
        raise UserError(f"loss.data_variance is {config.loss.data_variance}: use more than 0")
    if config.loss.perceptual_weight and config.data.resolution < 16:
        raise UserError("LPIPS needs data.resolution of 16 or more; or loss.perceptual_weight=0")
    _check_shapes(config)


def _check_ramp(ramp: tuple, place: str) -> None:
    if ramp and (len(ramp) != 4 or not 0 <= ramp[2] < ramp[3]):
        raise UserError(f"{place} is {tuple(ramp)}: use (from, to, first step, last step), or ()")


def _check_section(table: Mapping[str, Any], found: ConfigDict, place: str) -> None:
    fields = fields_of(_one_of(table, found.name, f"{place}.name"))
    for field in found:
        if field != "name" and field not in fields:
            known = ", ".join(fields)
            raise UserError(
                f"{place}.name is {found.name!r}, and {place}.{field} is no field of it (known: {known}); "
                f"a config file sets the name in base(), which brings the fields along"
            )


def _check_quantizer(quantizer: ConfigDict, place: str) -> None:
    for field, value in quantizer.items():
        if field == "inner":
            _check_section(QUANTIZERS, value, f"{place}.inner")
            _check_quantizer(value, f"{place}.inner")
            continue
        _check_range(field, value, f"{place}.{field}")
        if field in ("levels", "scales") and isinstance(value, tuple) and not value:
            raise UserError(f"{place}.{field} is (): name at least one")


def _check_range(field: str, value: Any, place: str) -> None:
    least, most = _QUANTIZER_LEAST.get(field), _QUANTIZER_MOST.get(field)
    if least is not None and value < least:
        raise UserError(f"{place} is {value}: use {least} or more")
    if most is not None and value > most:
        raise UserError(f"{place} is {value}: use {most} or less")


def _check_shapes(config: ConfigDict) -> None:
    """Runs the models on shapes alone: what cannot fit together fails here, not after an hour."""
    side = config.data.resolution
    x = jax.ShapeDtypeStruct((2, *image_shape(config)), jnp.float32)
    key = jax.random.key(0)
    try:
        out, _ = jax.eval_shape(make_tokenizer(config).init_with_output, key, x)
    except (ValueError, TypeError) as e:
        raise UserError(f"model or quantizer: {first_line(e)}") from e
    if out.shape != x.shape:
        raise UserError(
            f"data.resolution {side} does not halve as often as model.{config.model.name} asks: "
            f"images come back as {out.shape[1]}x{out.shape[2]}"
        )
    discriminator = make_discriminator(config)
    if discriminator is None:
        return
    try:
        logits = jax.eval_shape(lambda k, x: discriminator.init_with_output(k, x)[0], key, x)
    except (ValueError, TypeError) as e:
        raise UserError(f"discriminator: {first_line(e)}") from e
    if 0 in logits.shape:
        raise UserError(f"discriminator: images of {side} pixels are too small for its layers")


def make_tokenizer(config: ConfigDict) -> Tokenizer:
    """The Flax module that `config.model` and `config.quantizer` describe."""
    quantizer = make_quantizer(config.quantizer)
    try:
        encoder, decoder = MODELS[config.model.name](
            resolution=config.data.resolution,
            channels=config.data.channels,
            dim=quantizer.dim,
            dtype=jnp.dtype(config.dtype),
            **_kwargs(config.model),
        )
    except ValueError as e:
        raise UserError(str(e)) from e
    return Tokenizer(encoder=encoder, quantizer=quantizer, decoder=decoder)


def make_quantizer(quantizer: ConfigDict) -> Quantizer:
    """The Flax module that a section `config.quantizer` describes."""
    kwargs = _kwargs(quantizer)
    if "inner" in kwargs:
        kwargs["inner"] = make_quantizer(quantizer.inner)
    return QUANTIZERS[quantizer.name](**kwargs)


def make_prior(config: ConfigDict) -> Transformer:
    """The Flax module that `config.prior` describes, for the codes of `config.codes`."""
    codes = config.codes
    return _make_prior(
        config,
        num_codes=codes.num_codes,
        grid=tuple(codes.grid),
        books=codes.books,
        classes=len(codes.classes),
        condition=tuple(codes.condition),
    )


def _make_prior(config: ConfigDict, **facts: Any) -> Transformer:
    dtype = jnp.dtype(config.dtype)
    try:
        return PRIORS[config.prior.name](dtype=dtype, **facts, **_kwargs(config.prior))
    except ValueError as e:
        raise UserError(str(e)) from e


def make_draw(config: ConfigDict, **changes: Any) -> Draw:
    """How a prior's codes are drawn: `config.sampling`, some fields changed."""
    fields = {f.name: config.sampling[f.name] for f in dataclasses.fields(Draw)}
    try:
        return Draw(**fields | changes)
    except ValueError as e:
        raise UserError(f"sampling: {e}") from e


def make_condition(config: ConfigDict) -> Any:
    """The function that makes a condition's image of an image, or None."""
    try:
        return CONDITIONS[config.condition.name](**_kwargs(config.condition))
    except ValueError as e:
        raise UserError(f"condition: {e}") from e


def image_shape(config: ConfigDict) -> tuple[int, int, int]:
    """(H, W, C) of the training images."""
    return (config.data.resolution, config.data.resolution, config.data.channels)


def variable_shapes(config: ConfigDict, tokenizer: Tokenizer) -> dict[str, Any]:
    """The shapes of a tokenizer's variables: nested dicts, by collection."""
    x = jax.ShapeDtypeStruct((1, *image_shape(config)), jnp.float32)
    return jax.eval_shape(tokenizer.init, jax.random.key(0), x)


def grids(config: ConfigDict, tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of latents, without their last axis, and of codes for an image of the training
    resolution, such as (8, 8) and (8, 8), or (8, 8, 4) where a latent has 4 codes."""
    x = jax.ShapeDtypeStruct((1, *image_shape(config)), jnp.float32)

    def shapes(key, x):
        z, _ = tokenizer.init_with_output(key, x, method="encode")
        return z, tokenizer.init_with_output(key, z, method="quantize")[0][1]

    z, codes = jax.eval_shape(shapes, jax.random.key(0), x)
    return z.shape[1:-1], codes.shape[1:]


def make_discriminator(config: ConfigDict) -> nn.Module | None:
    """The discriminator, or None where no phase has one."""
    if not config.phases.adversarial:
        return None
    made = DISCRIMINATORS[config.discriminator.name]
    return made(dtype=jnp.dtype(config.dtype), **_kwargs(config.discriminator))


def use_data(config: ConfigDict, data: ConfigDict | None) -> None:
    """Puts a section `data` in place of a config's own, but for resolution and channels."""
    if data is not None:
        if data.source == "codes" and not is_prior(config):
            raise UserError(
                "data.source is 'codes', and a tokenizer takes images: name a source of images"
            )
        with config.unlocked():
            data.resolution, data.channels = config.data.resolution, config.data.channels
            config.data = data


def _kwargs(config: ConfigDict) -> dict[str, Any]:
    return {field: value for field, value in config.items() if field != "name"}


# --- on disk --------------------------------------------------------------------------------------


def save(config: ConfigDict, path: Path) -> None:
    """Writes a config as JSON."""
    write((json.dumps(config.to_dict(), indent=2) + "\n").encode(), path)


def load(path: Path) -> ConfigDict:
    """Reads a config that `save` wrote, checked.

    Raises:
      UserError: there is none, or it does not hold.
    """
    try:
        saved = _tuples(json.loads(path.read_text()))
        if not ({"model", "quantizer"} <= saved.keys() or "prior" in saved):
            raise UserError(
                f"{path} is not a config of ours: weights of another codebase come in by "
                f"--mode=import --input={path.parent}"
            )
        if "prior" in saved:  # fields that came after the run get their defaults
            config = base_prior(saved["prior"]["name"], saved["condition"]["name"])
        else:
            quantizer = _name(saved["quantizer"])
            config = base(saved["model"]["name"], quantizer, saved["discriminator"]["name"])
        config.update(saved)
    except (FileNotFoundError, NotADirectoryError) as e:
        folder = path.parent
        lacks = f"no {path.name} in {folder}" if folder.is_dir() else f"there is no folder {folder}"
        raise UserError(f"{lacks}: train there first, or name another --workdir") from e
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror or e}") from e
    except json.JSONDecodeError as e:
        raise UserError(f"{path} is damaged: {first_line(e)}") from e
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(f"{path} is not a config of this version: {first_line(e)}") from e
    check(config)
    return config.lock()


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def differences(a: ConfigDict, b: ConfigDict, prefix: str = "") -> list[str]:
    """Fields whose values differ, as 'optim.lr 0.001 -> 0.002'."""
    found = []
    for field in sorted({*a, *b}):
        old, new = a.get(field), b.get(field)
        if isinstance(old, ConfigDict) and isinstance(new, ConfigDict):
            found += differences(old, new, f"{prefix}{field}.")
        elif old != new:
            found.append(f"{prefix}{field} {old} -> {new}")
    return found

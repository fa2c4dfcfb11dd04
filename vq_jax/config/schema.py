"""Every field of a config with its default, its bounds and its meaning."""

import dataclasses
import difflib
import inspect
from collections.abc import Mapping
from typing import Annotated, Any

from ml_collections import ConfigDict, config_dict

from vq_jax.bounds import Bounds
from vq_jax.errors import UserError
from vq_jax.modalities import MODALITIES
from vq_jax.models import DISCRIMINATORS, MODELS, PRIORS
from vq_jax.quantizers import QUANTIZERS, SCHEDULED
from vq_jax.sampling import Draw

PHASES = ("autoencoder", "quantizer", "joint", "adversarial")
# Arguments of models and modules that the program passes, and that are no config fields.
_NOT_FIELDS = {
    "spec",
    "dtype",
    "parent",
    "name",
    "causal",
    "target_aware",
    "grids",
    "latent",
    "radices",
}


# --- fields of every run ---------------------------------------------------------------------------


@dataclasses.dataclass
class Run:
    """Fields of every config."""

    modality: str = "image"  # kind of data; the model's
    seed: int = 0
    parallel: str = "pmap"  # one host; "jit" for many
    dtype: str = "float32"  # of the computation, or "bfloat16"; params are always float32
    log_every: Annotated[int, Bounds(1)] = 20  # steps between lines of metrics.jsonl
    save_every: Annotated[int, Bounds(1)] = 500  # steps between checkpoints
    keep: Annotated[int, Bounds(1)] = 2  # number of checkpoints kept
    # Consecutive steps with NaN or infinite values before training returns to the last checkpoint.
    skip_limit: Annotated[int, Bounds(1)] = 10
    eval_every: Annotated[int, Bounds(0)] = 0  # steps between; 0 evaluates at the end only
    tensorboard: bool = True  # log to TensorBoard, if tensorboardX is installed
    wandb: str = ""  # project to log to, with wandb installed
    start_from: str = ""  # a run, import or export whose weights training starts from


@dataclasses.dataclass
class Data:
    """Fields of `data` that every modality has; a modality adds its own (`Modality.data_fields`)."""

    source: str = ""  # of the modality (its first by default), tfds:NAME, or "codes" for a prior
    folder: str = ""  # folder or file of the source
    dir: str = ""  # where TFDS keeps prepared data; "" is ~/tensorflow_datasets
    val_fraction: float = 0.1  # held out, if the data set has no split for it
    batch_size: Annotated[int, Bounds(1)] = 64  # over all devices
    workers: Annotated[int, Bounds(0)] = 0  # processes that decode; 0 decodes in threads


@dataclasses.dataclass
class Optim:
    """Fields of `optim` and `disc_optim`."""

    lr: Annotated[float, Bounds(0)] = 1e-4  # peak learning rate
    lr_end: Annotated[float, Bounds(0)] = 0.0  # learning rate at the end of "cosine"
    schedule: str = "constant"  # or "cosine"
    warmup_steps: Annotated[int, Bounds(0)] = 0
    b1: Annotated[float, Bounds(0, 1)] = 0.9
    b2: Annotated[float, Bounds(0, 1)] = 0.99
    muon_lr: Annotated[float, Bounds(0)] = 0.0  # peak of Muon, for kernels; 0: AdamW
    weight_decay: Annotated[float, Bounds(0)] = 0.0  # of kernels only
    clip_norm: Annotated[float, Bounds(0)] = 0.0  # largest gradient norm; 0 does not clip
    accumulate: Annotated[int, Bounds(1)] = 1  # batches an update


# --- tokenizers ------------------------------------------------------------------------------------


@dataclasses.dataclass
class TokenizerRun:
    """Fields of a tokenizer's config."""

    eval_lpips: bool = True  # LPIPS of images in evaluations, which takes most of their time
    kmeans_batches: Annotated[int, Bounds(0)] = 8  # batches that initialise the codebook; 0: random
    ema_decay: Annotated[float, Bounds(0, 1)] = 0.999  # of the params used in evaluation


@dataclasses.dataclass
class TokenizerLoss:
    """Fields of a tokenizer's `loss`; a modality adds its own (`Modality.loss_fields`)."""

    reconstruction: str = ""  # a loss of the modality
    reconstruction_weight: Annotated[float, Bounds(0)] = 1.0
    data_variance: float = 1.0  # the reconstruction loss is divided by it
    codebook_weight: Annotated[float, Bounds(0)] = 1.0  # of all losses of the quantizer
    # A model that takes a quality is trained for u^quality_power, u uniform: above 1, more often for low ones.
    quality_power: Annotated[float, Bounds(0.1, 10)] = 1.0


@dataclasses.dataclass
class Adversarial:
    """Fields of `adversarial`."""

    loss: str = "hinge"  # or "vanilla", "non_saturating"
    generator_loss: str = ""  # "linear" or "non_saturating"; "" is the one that goes with `loss`
    weight: Annotated[float, Bounds(0)] = 0.8
    adaptive_limit: Annotated[float, Bounds(0)] = (
        1e4  # clip of the adaptive weight; 0 keeps the weight fixed
    )
    warmup_steps: Annotated[int, Bounds(0)] = (
        0  # steps of the discriminator alone, at the start of the phase
    )
    ramp_steps: Annotated[int, Bounds(0)] = (
        0  # steps in which the generator's weight then grows from 0
    )
    r1_weight: Annotated[float, Bounds(0)] = 0.0
    r1_every: Annotated[int, Bounds(1)] = 16
    lecam_weight: Annotated[float, Bounds(0)] = 0.0
    lecam_decay: Annotated[float, Bounds(0, 1)] = 0.999


# --- priors ----------------------------------------------------------------------------------------


@dataclasses.dataclass
class PriorRun:
    """Fields of a prior's config."""

    tokenizer: str = "runs/default"  # the run whose codes are learned
    fsdp: bool = False  # shard params and optimizer over the devices (parallel="jit")
    eval_samples: Annotated[int, Bounds(0)] = 256  # samples drawn in evaluation; 0 draws none
    eval_references: Annotated[int, Bounds(8)] = 1024  # training examples they are compared with
    ema_decay: Annotated[float, Bounds(0, 1)] = 0.999


@dataclasses.dataclass
class PriorLoss:
    """Fields of a prior's `loss`."""

    label_smoothing: Annotated[float, Bounds(0, 1)] = 0.0
    # Share of examples trained without their label, for guidance.
    label_dropout: Annotated[float, Bounds(0, 1)] = 0.1
    least_masked: Annotated[float, Bounds(0, 1)] = 0.0  # masked: smallest share of masked codes
    # random_order: share of examples in a random order, the others row by row, as (from, to, first
    # step, last step); () is always 1.
    permute: tuple = ()


@dataclasses.dataclass
class Masked:
    """Fields of `sampling` for masked priors, beside those of `sampling.Draw`."""

    steps: Annotated[int, Bounds(1)] = 12
    choice_temperature: Annotated[float, Bounds(0)] = 4.5  # randomness in what is fixed first
    order: str = "confidence"  # or "halton"


@dataclasses.dataclass
class Codes:
    """Facts about the codes, filled in when training starts."""

    num_codes: int = 0
    books: int = 1  # codes a position
    grid: tuple = ()
    grids: tuple = ()  # of the levels of a pyramid, coarse to fine
    latent: int = 0  # dimensions of a latent
    radices: tuple = ()  # of codes that are numbers, the values of their digits
    condition: tuple = ()  # grid of the condition's codes
    example: tuple = ()  # shape of an example
    classes: tuple = ()  # names


# Sections of a config by kind: the dataclasses whose fields each has. "" is the top level.
SECTIONS: dict[str, dict[str, tuple[type, ...]]] = {
    "tokenizer": {
        "": (Run, TokenizerRun),
        "data": (Data,),
        "loss": (TokenizerLoss,),
        "adversarial": (Adversarial,),
        "optim": (Optim,),
        "disc_optim": (Optim,),
    },
    "prior": {
        "": (Run, PriorRun),
        "data": (Data,),
        "loss": (PriorLoss,),
        "sampling": (Draw, Masked),
        "optim": (Optim,),
        "codes": (Codes,),
    },
}
# Sections that one entry of a table describes, by kind: its maker's arguments are the fields.
TABLES: dict[str, dict[str, Mapping[str, Any]]] = {
    "tokenizer": {
        "model": {name: model.make for name, model in MODELS.items()},
        "quantizer": QUANTIZERS,
        "discriminator": DISCRIMINATORS,
    },
    "prior": {"prior": PRIORS},
}


def kind_of(config: Mapping[str, Any]) -> str:
    """Returns what a config describes: "tokenizer" or "prior"."""
    return "prior" if "prior" in config else "tokenizer"


def sections(kind: str, modality: str) -> dict[str, tuple[type, ...]]:
    """Returns the dataclasses of each section of a config, with those of the modality."""
    found = dict(SECTIONS[kind])
    found["data"] += (MODALITIES[modality].data_fields,)
    if kind == "tokenizer":
        found["loss"] += (MODALITIES[modality].loss_fields,)
    return found


def _section_of(classes: tuple[type, ...], **changes: Any) -> ConfigDict:
    """A config section with the fields and defaults of dataclasses."""
    config = ConfigDict()
    for cls in classes:
        for field in dataclasses.fields(cls):
            value = field.default
            config[field.name] = config_dict.placeholder(int) if value is None else value
    config.update(changes)
    return config


def fields_of(maker: Any) -> dict[str, Any]:
    """Returns the config fields of a function or Flax module, with their defaults."""
    if dataclasses.is_dataclass(maker):
        return {
            f.name: f.default
            for f in dataclasses.fields(maker)
            if f.name not in _NOT_FIELDS and f.init
        }
    parameters = inspect.signature(maker).parameters.values()
    return {
        p.name: p.default
        for p in parameters
        if p.name not in _NOT_FIELDS and p.default is not p.empty
    }


def section(table: Mapping[str, Any], name: str, **changes: Any) -> ConfigDict:
    """Returns the config section of one entry of a table: its name and all its fields.

    Args:
      table: name -> function or Flax module.
      name: of the entry. A field `inner` is a section of the same table: "residual/fsq" names both,
        and "residual" is "residual/vq".
      **changes: fields with other values than the defaults.

    Raises:
      UserError: the table has no such entry, or the entry no such field.
    """
    name, _, inner = name.partition("/")
    fields = fields_of(look_up(table, name, "the section's name"))
    if "inner" in fields:
        fields["inner"] = section(table, inner or "vq")
    elif inner:
        raise UserError(f"{name} has no inner quantizer: {name!r}, not '{name}/{inner}'")
    for field in changes:
        if field not in fields:
            raise UserError(f"{name} has no field {field!r}{near(field, fields)}")
    return ConfigDict({"name": name, **fields, **changes}, convert_dict=False)


def near(name: str, names: Any) -> str:
    """Returns a hint at names similar to a wrong one."""
    names = list(names)
    found = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    return f"; did you mean {' or '.join(found)}?" if found else f" (known: {', '.join(names)})"


def look_up(table: Mapping[str, Any], name: str, field: str) -> Any:
    """Returns an entry of a table.

    Raises:
      UserError: there is none of that name; the message names similar ones.
    """
    if name not in table:
        raise UserError(f"{field} is {name!r}{near(name, table)}")
    return table[name]


def section_name(section: Mapping[str, Any]) -> str:
    """Returns the name that `section` takes for this section, such as "residual/fsq"."""
    name = section["name"]
    return f"{name}/{section_name(section['inner'])}" if "inner" in section else name


# --- whole configs ---------------------------------------------------------------------------------


def _base(kind: str, modality: str) -> ConfigDict:
    parts = sections(kind, modality)
    config = _section_of(parts.pop(""), modality=modality)
    for name, classes in parts.items():
        config[name] = _section_of(classes)
    config.data.source = next(iter(MODALITIES[modality].sources()))
    return config


def base(
    model: str = "vqgan", quantizer: str = "vq", discriminator: str | None = None
) -> ConfigDict:
    """Returns a tokenizer's config with every field at its default.

    Args:
      model: name in `MODELS`; its fields become `config.model`, and it decides the modality.
      quantizer: name in `QUANTIZERS`; its fields become `config.quantizer`. "residual/fsq" is a
        residual quantizer of FSQs, whose fields are `config.quantizer.inner`.
      discriminator: name in `DISCRIMINATORS`; its fields become `config.discriminator`. None is the
        default of the modality.

    Returns:
      a locked ConfigDict: fields can be changed, but not added.

    Raises:
      UserError: a name is not known.
    """
    modality = look_up(MODELS, model, "model").modality
    config = _base("tokenizer", modality)
    config.loss.reconstruction = next(iter(MODALITIES[modality].losses))
    for name, entry in (
        ("model", model),
        ("quantizer", quantizer),
        ("discriminator", discriminator or MODALITIES[modality].discriminator),
    ):
        config[name] = section(TABLES["tokenizer"][name], entry)
    # Quantizer fields that change: (from, to, first step, last step); () keeps the field's value.
    config.anneal = ConfigDict({n: () for n in SCHEDULED if _has(config.quantizer, n)})
    # Steps of each phase: the autoencoder without quantization; the quantizer on the frozen encoder;
    # all of them; all of them with the discriminator.
    config.phases = ConfigDict(dict.fromkeys(PHASES, 0))
    return config.lock()


def base_prior(
    prior: str = "causal", condition: str = "none", modality: str = "image"
) -> ConfigDict:
    """Returns a prior's config with every field at its default.

    Args:
      prior: name in `PRIORS`; its fields become `config.prior`.
      condition: what the prior is given beside a label: a name in the modality's `conditions`.
      modality: the tokenizer's kind of data.

    Returns:
      a locked ConfigDict.

    Raises:
      UserError: a name is not known.
    """
    conditions = look_up(MODALITIES, modality, "modality").conditions
    config = _base("prior", modality)
    config.condition = section(conditions, condition)
    config.prior = section(PRIORS, prior)
    config.phases = ConfigDict({"prior": 0})  # steps
    config.optim.update({"b2": 0.95, "weight_decay": 0.05, "clip_norm": 1.0})
    return config.lock()


def _has(quantizer: ConfigDict, field: str) -> bool:
    return field in quantizer or ("inner" in quantizer and _has(quantizer.inner, field))

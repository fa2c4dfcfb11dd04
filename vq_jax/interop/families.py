"""Which codebase a file of weights is from, and the config that its shapes describe."""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from vq_jax.errors import UserError
from vq_jax.interop import names
from vq_jax.interop.names import Row
from vq_jax.interop.weights import Weights

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Family:
    """A codebase's tokenizers.

    Attributes:
      name: what --format calls it.
      signature: a regular expression of one of its arrays' names; what stands before it in the file
        is before all of them.
      read: arrays by their names (without what stands before), and config.json, -> the config's
        sections that differ from their defaults; raises UserError for a relative that is not known.
      rows: the table of its names, for `config.model`.
      idle: a regular expression of arrays that no model needs.
      told: whether its names tell it; otherwise only --format does.
      assumes: what its config.json would say, and no shape does.
    """

    name: str
    signature: str
    read: Callable[[Arrays, dict[str, Any]], dict[str, Any]]
    rows: Callable[[Mapping[str, Any]], Iterator[Row]]
    idle: str = r"$^"
    told: bool = True
    assumes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _count(arrays: Arrays, pattern: str) -> int:
    """How many numbers from 0 on, without a gap, stand in for {} in names that begin like this."""
    prefix, suffix = (re.escape(part) for part in pattern.split("{}"))
    matches = (re.match(rf"{prefix}(\d{{1,4}}){suffix}", name) for name in arrays)
    numbers = {int(m[1]) for m in matches if m}
    return next(n for n in range(len(numbers) + 1) if n not in numbers)


def _shape(arrays: Arrays, name: str, rank: int) -> tuple[int, ...]:
    if name not in arrays:
        raise UserError(f"there is no {name} in it")
    if arrays[name].ndim != rank:
        raise UserError(f"{name} is {arrays[name].shape}, which is no shape of its kind")
    return arrays[name].shape


def _resolution(about: dict[str, Any], levels: int) -> int:
    """Of the images it was trained on: the user's word, config.json's, or what most were."""
    if (told := about.get("resolution")) is not None:
        if told < 1 or told % 2 ** (levels - 1):
            raise UserError(f"--resolution={told} does not halve {levels - 1} times")
        return told
    side = about.get("sample_size")
    # 32 is what diffusers writes where nobody has named a size.
    named = isinstance(side, int) and side > 32 and side % 2 ** (levels - 1) == 0
    return int(side) if named and isinstance(side, int) else 256


def _convolutional(
    arrays: Arrays,
    about: dict[str, Any],
    *,
    conv1: str,
    blocks: str,
    attention: str | None,
    mid_attention: str,
) -> dict[str, Any]:
    """Sections `model` and `data` of VQGAN's architecture.

    Args:
      arrays, about: as `Family.read`'s.
      conv1: name of the encoder's first convolution of a block, {l} for the level.
      blocks: what its blocks of level 0 begin with, {} for the block.
      attention: name of an array of the first attention of an encoder's level, {l} for the level.
      mid_attention: name of an array of the middle's attention.
    """
    ch, channels, *_ = _shape(arrays, "encoder.conv_in.weight", 4)
    levels = _count(arrays, conv1.partition("{l}")[0] + "{}.")
    widths = [_shape(arrays, conv1.format(l=level), 4)[0] for level in range(levels)]
    mults = tuple(w // ch if w % ch == 0 else w / ch for w in widths)
    resolution = _resolution(about, levels)
    attended = [
        level for level in range(levels) if attention and attention.format(l=level) in arrays
    ]
    model = {
        "ch": ch,
        "ch_mult": mults,
        "num_res_blocks": _count(arrays, blocks),
        "attn_resolutions": tuple(resolution // 2**level for level in attended),
        "mid_attention": mid_attention in arrays,
        "z_channels": _shape(arrays, "encoder.conv_out.weight", 4)[0],
    }
    data = {"resolution": resolution, "channels": channels}
    return {"model": {"name": "vqgan"} | model, "data": data}


def _entries(arrays: Arrays, name: str = "quantize.embedding.weight") -> dict[str, int]:
    if name not in arrays:
        raise UserError(f"it has no codebook ({name}): an autoencoder of another kind, KL perhaps")
    count, dim = _shape(arrays, name, 2)
    return {"num_codes": count, "dim": dim}


# A codebook from elsewhere stays as it is until it is trained.
_FIXED = {"codebook": "gradient", "revive_below": 0.0}
# taming's loss puts its .25 on the codebook term and 1 on the commitment: .25 (codebook + 4 c).
_LEGACY = {"beta": 4.0}
# Open-MAGVIT2 and IBQ train the generator with a fixed weight and the discriminator with the hinge.
_SEED_VOKEN = {
    "loss": "hinge",
    "generator_loss": "non_saturating",
    "weight": 0.1,
    "adaptive_limit": 0.0,
    "lecam_weight": 0.05,
}
_TAMING_LOSS = {"codebook_weight": 0.25, "perceptual_weight": 1.0, "reconstruction": "l1"}


def _taming_body(arrays: Arrays, about: dict[str, Any]) -> dict[str, Any]:
    return _convolutional(
        arrays,
        about,
        conv1="encoder.down.{l}.block.0.conv1.weight",
        blocks="encoder.down.0.block.{}.",
        attention="encoder.down.{l}.attn.0.q.weight",
        mid_attention="encoder.mid.attn_1.q.weight",
    )


def _read_taming(arrays: Arrays, about: dict[str, Any]) -> dict[str, Any]:
    quantizer: dict[str, Any] = {"name": "vq"} | _entries(arrays)
    if "quantize.embedding.embed_avg" in arrays:  # moving averages, and a plain commitment loss
        quantizer |= {"codebook": "ema", "revive_below": 0.0, "beta": 0.25}
        loss = _TAMING_LOSS | {"codebook_weight": 1.0}
    else:
        quantizer, loss = quantizer | _FIXED | _LEGACY, _TAMING_LOSS
    return _taming_body(arrays, about) | {"quantizer": quantizer, "loss": loss}


def _read_gumbel(arrays: Arrays, about: dict[str, Any]) -> dict[str, Any]:
    entries = _entries(arrays, "quantize.embed.weight")
    if _shape(arrays, "quantize.proj.weight", 4)[:2] != (entries["num_codes"], entries["dim"]):
        raise UserError("its codes are scored in another number of dimensions than they have")
    quantizer = {"name": "gumbel", "revive_below": 0.0, "kl_weight": 1e-8} | entries
    return _taming_body(arrays, about) | {"quantizer": quantizer}


def _read_ibq(arrays: Arrays, about: dict[str, Any]) -> dict[str, Any]:
    quantizer = {"name": "ibq", "revive_below": 0.0} | _entries(arrays)
    return _taming_body(arrays, about) | {"quantizer": quantizer, "adversarial": _SEED_VOKEN}


def _read_llamagen(arrays: Arrays, about: dict[str, Any]) -> dict[str, Any]:
    quantizer = {"name": "vq", "distance": "cosine"} | _entries(arrays) | _FIXED
    found = _convolutional(
        arrays,
        about,
        conv1="encoder.conv_blocks.{l}.res.0.conv1.weight",
        blocks="encoder.conv_blocks.0.res.{}.",
        attention="encoder.conv_blocks.{l}.attn.0.q.weight",
        mid_attention="encoder.mid.1.q.weight",
    )
    loss = {"reconstruction": "l2", "perceptual_weight": 1.0}
    adversarial = {"weight": 0.5, "adaptive_limit": 0.0}
    return found | {"quantizer": quantizer, "loss": loss, "adversarial": adversarial}


def _read_diffusers(arrays: Arrays, about: dict[str, Any]) -> dict[str, Any]:
    for field, known in (
        ("norm_type", "group"),
        ("norm_num_groups", 32),
        ("act_fn", "silu"),
    ):
        if about.get(field, known) != known:
            raise UserError(f"its {field} is {about[field]!r}: only {known!r} is known here")
    found = _convolutional(
        arrays,
        about,
        conv1="encoder.down_blocks.{l}.resnets.0.conv1.weight",
        blocks="encoder.down_blocks.0.resnets.{}.",
        attention="encoder.down_blocks.{l}.attentions.0.to_q.weight",
        mid_attention="encoder.mid_block.attentions.0.to_q.weight",
    )
    quantizer = {"name": "vq"} | _entries(arrays) | _FIXED | _LEGACY
    return found | {"quantizer": quantizer, "loss": _TAMING_LOSS}


def _read_magvit2(arrays: Arrays, about: dict[str, Any]) -> dict[str, Any]:
    ch, channels, *_ = _shape(arrays, "encoder.conv_in.weight", 4)
    levels = _count(arrays, "encoder.down.{}.")
    widths = [_shape(arrays, f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in range(levels)]
    model = {
        "name": "magvit2",
        "ch": ch,
        "ch_mult": tuple(width // ch for width in widths),
        "num_res_blocks": _count(arrays, "encoder.down.0.block.{}."),
    }
    bits = _shape(arrays, "encoder.conv_out.weight", 4)[0]
    resolution = _resolution(about, levels)
    return {
        "model": model,
        "quantizer": {"name": "lfq", "bits": bits},
        "data": {"resolution": resolution, "channels": channels},
        "adversarial": _SEED_VOKEN | ({"lecam_weight": 0.01} if resolution == 128 else {}),
    }


def _read_maskgit(arrays: Arrays, about: dict[str, Any]) -> dict[str, Any]:
    _, _, channels, ch = _shape(arrays, "encoder/Conv_0/kernel", 4)
    levels = _count(arrays, "decoder/Conv_{}/") - 1
    total = _count(arrays, "encoder/ResBlock_{}/")
    if levels < 1 or total % (levels + 1):
        raise UserError(f"{total} blocks do not make {levels} levels and a middle")
    blocks = total // (levels + 1)
    firsts = [f"encoder/ResBlock_{level * blocks}/Conv_0/kernel" for level in range(levels)]
    model = {
        "name": "maskgit",
        "ch": ch,
        "ch_mult": tuple(_shape(arrays, name, 4)[-1] // ch for name in firsts),
        "num_res_blocks": blocks,
    }
    quantizer = {"name": "vq"} | _entries(arrays, "quantizer/codebook") | _FIXED
    quantizer |= {"entropy_weight": 0.1, "temperature": 0.01}
    return {
        "model": model,
        "quantizer": quantizer,
        "data": {"resolution": _resolution(about, levels), "channels": channels},
        "loss": {"reconstruction": "l2", "perceptual_weight": 0.1},
        "adversarial": {"loss": "non_saturating", "weight": 0.1, "adaptive_limit": 0.0},
    }


_TAMING = r"encoder\.down\.0\.block\.0\.norm1\.weight$"
_IDLE = r"quantize\.(codebook_used|mask|zero|codebook|pre_mask|post_mask)$"
# Arrays that no model needs, and that are carried along: export gives them back.
_CARRIED = r"loss\.|colorize$|quantize\.used$"
# Arrays with a row for each entry, of which taming's remap (`quantize.used`) uses some.
_ENTRIES = (
    "quantize.embedding.weight",
    "quantize.embedding.cluster_size",
    "quantize.embedding.embed_avg",
    "quantize.embed.weight",
    "quantize.proj.weight",
    "quantize.proj.bias",
)
FAMILIES = {
    family.name: family
    for family in (
        Family(
            "magvit2",
            r"decoder\.adaptive\.0\.gamma\.weight$",
            _read_magvit2,
            names.magvit2,
            _IDLE,
        ),
        Family(
            "taming_gumbel", r"quantize\.embed\.weight$", _read_gumbel, names.taming_gumbel, _IDLE
        ),
        Family("taming", _TAMING, _read_taming, names.taming, _IDLE),
        # The same names as taming's.
        Family("ibq", _TAMING, _read_ibq, names.taming, _IDLE, told=False),
        Family(
            "llamagen",
            r"encoder\.conv_blocks\.0\.res\.0\.norm1\.weight$",
            _read_llamagen,
            names.llamagen,
            _IDLE,
        ),
        Family(
            "diffusers",
            r"encoder\.down_blocks\.0\.resnets\.0\.norm1\.weight$",
            _read_diffusers,
            names.diffusers,
            assumes={"norm_num_groups": 32},
        ),
        Family("maskgit", r"encoder/ResBlock_0/Conv_0/kernel$", _read_maskgit, names.maskgit),
    )
}
# What a copy of the weights is called that holds their moving averages, which are preferred.
_AVERAGED = frozenset(
    [
        "ema",
        "ema_params",
        "params_ema",
        "state_dict_ema",
        "ema_state_dict",
        "ema_model",
        "model_ema",
        "ema_generator",
    ]
)
# Before which of several copies in one file the others are passed over.
_COPIES = (
    "state_dict.first_stage_model.",
    "first_stage_model.",
    "state_dict.",
)
# latent-diffusion's and Open-MAGVIT2's moving averages: names without dots.
_AVERAGES = "model_ema."


@dataclasses.dataclass(frozen=True)
class Found:
    """A tokenizer in a file of weights.

    Attributes:
      family: whose it is.
      arrays: its own, by the family's names.
      carried: what else belongs to it, by its own names: the loss of its training, a remap and the
        entries that it does not use.
      sections: of the config, that differ from their defaults.
      assumed: whether the training images' size was told by nobody.
      averaged: whether the file's moving averages were taken.
      beside: how many other arrays are in the file, by the first part of their names.
      notes: what else the user should know.
    """

    family: Family
    arrays: dict[str, np.ndarray]
    carried: dict[str, np.ndarray]
    sections: dict[str, Any]
    assumed: bool
    averaged: bool
    beside: Mapping[str, int]
    notes: tuple[str, ...] = ()


def find_tokenizer(weights: Weights, name: str | None, resolution: int | None = None) -> Found:
    """The tokenizer in a file: whose it is, and what its shapes say of it.

    Args:
      weights: the file.
      name: in `FAMILIES`; None tells it by the names of its arrays.
      resolution: of the images it was trained on; None takes the file's word, or 256.

    Raises:
      UserError: no known family has such names, or its architecture has no form here.
    """
    arrays = _modern(weights.arrays)
    for family in [FAMILIES[name]] if name else [f for f in FAMILIES.values() if f.told]:
        prefixes = {
            m[1]
            for m in (re.match(rf"((?:.*[./])?){family.signature}", key) for key in arrays)
            if m and not m[1].startswith(("cond_stage_model.", "state_dict.cond_stage_model."))
        }
        if not prefixes:
            continue
        prefix = min(prefixes, key=_place_of_copy)
        own = {key[len(prefix) :]: a for key, a in arrays.items() if key.startswith(prefix)}
        carried = {key: array for key, array in own.items() if re.match(_CARRIED, key)}
        averages = {
            key: arrays[short]
            for key in own
            if (short := f"{prefix}{_AVERAGES}{key.replace('.', '')}") in arrays
        }
        own = {
            key: array
            for key, array in (own | averages).items()
            if not re.match(rf"model_ema\.|{_CARRIED}|{family.idle}", key)
        }
        others = (key for key in arrays if key.removeprefix(prefix) not in own | carried)
        beside = Counter(re.split(r"[./]", key.removeprefix(prefix))[0] for key in others)
        notes = []
        if "quantize.used" in carried:
            own, unused = _remapped(own, carried["quantize.used"])
            carried |= unused
            notes.append(
                f"codes are its remap's, {len(carried['quantize.used'])} of the entries; where an "
                "entry outside it is nearest, the original draws a code, and here it is the nearest "
                "inside"
            )
        if missing := family.assumes.keys() - weights.about.keys():
            fields = ", ".join(f"{name} {family.assumes[name]}" for name in sorted(missing))
            notes.append(f"assumed, as no config.json says it: {fields}")
        sections = family.read(own, weights.about | {"resolution": resolution})
        averaged = bool(averages) or _is_average(prefix)
        side = weights.about.get("sample_size") if resolution is None else resolution
        assumed = side != sections["data"]["resolution"]
        return Found(family, own, carried, sections, assumed, averaged, beside, tuple(notes))
    known = ", ".join(FAMILIES)
    shown = ", ".join(name[:120] for name in sorted(arrays)[:4])
    raise UserError(
        f"{weights.path} is of no known {'kind' if name is None else name}: its arrays are called "
        f"{shown}, ...; known are {known}"
    )


def _is_average(prefix: str) -> bool:
    return not _AVERAGED.isdisjoint(re.split(r"[./]", prefix))


def _place_of_copy(prefix: str) -> tuple[bool, int, int]:
    """Sorts the copies of one model in a file, by what stands before their names."""
    known = _COPIES.index(prefix) if prefix in _COPIES else len(_COPIES)
    return not _is_average(prefix), known, len(prefix)


def _remapped(
    arrays: dict[str, np.ndarray], used: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Arrays with the entries alone that taming's remap uses, in its order; and the whole ones."""
    whole = {name: arrays[name] for name in _ENTRIES if name in arrays}
    fits = used.ndim == 1 and used.dtype.kind in "iu" and 0 < used.size == len(np.unique(used))
    if not fits or any(
        a.ndim < 1 or used.max() >= len(a) or used.min() < 0 for a in whole.values()
    ):
        raise UserError("its remap (quantize.used) does not fit its codebook")
    return arrays | {name: array[used] for name, array in whole.items()}, whole


def _modern(arrays: Arrays) -> dict[str, np.ndarray]:
    """diffusers' attention layers under the names they have today."""
    old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

    def rename(key: str) -> str:
        found = re.match(r"(.*attentions\.\d+)\.(query|key|value|proj_attn)\.(\w+)$", key)
        return f"{found[1]}.{old[found[2]]}.{found[3]}" if found else key

    return {rename(key): array for key, array in arrays.items()}


def find_discriminator(weights: Weights) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """The PatchGAN in a training file, as taming and LlamaGen keep it.

    Returns:
      the fields of `config.discriminator`; its arrays, under our names. None where there is none, or
      one of another kind.
    """
    found = [re.match(r"(.*discriminator\.)main\.0\.weight$", key) for key in weights.arrays]
    prefix = next((m[1] for m in found if m), None)
    if prefix is None:
        return None
    own = {k[len(prefix) :]: a for k, a in weights.arrays.items() if k.startswith(prefix)}
    numbers = [int(m[1]) for m in (re.match(r"main\.(\d{1,4})\.", key) for key in own) if m]
    n_layers, rest = divmod(max(numbers) - 2, 3)
    if rest or n_layers < 1:
        return None
    table = names.Names.of(names.patchgan(n_layers))
    taken, used = table.take(own, table.leaves)
    if own.keys() - used - {k for k in own if re.search(r"running_|num_batches", k)}:
        return None  # an ActNorm, perhaps
    section = {"name": "patchgan", "ndf": _shape(own, "main.0.weight", 4)[0], "n_layers": n_layers}
    return section, taken


def find_lpips(weights: Weights) -> dict[str, np.ndarray]:
    """LPIPS on VGG16 in a training file, under our names; {} where it is not, or not whole."""
    found = [
        re.match(r"(.*perceptual_loss\.)net\.slice1\.0\.weight$", key) for key in weights.arrays
    ]
    prefix = next((m[1] for m in found if m), None)
    if prefix is None:
        return {}
    table = names.Names.of(names.lpips_vgg())
    own = {k[len(prefix) :]: a for k, a in weights.arrays.items() if k.startswith(prefix)}
    taken, _ = table.take(own, table.leaves)
    whole = len(taken) == len(table.leaves) and all(
        taken[f"lpips/conv_{j}"].shape[3:] == taken[f"lpips/bias_{j}"].shape for j in range(13)
    )
    return taken if whole else {}

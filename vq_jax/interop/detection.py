"""Finds the tokenizer in a weight file, and the discriminator and LPIPS it was trained with."""

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from vq_jax.errors import UserError
from vq_jax.interop import names
from vq_jax.interop.families import FAMILIES, Family
from vq_jax.interop.shapes import Arrays, shape_of
from vq_jax.interop.var import split_qkv
from vq_jax.interop.weights import Weights

# Arrays that no model needs. They are kept, so that an export can return them.
_CARRIED = r"loss\.|colorize$|quantize\.used$"
# Arrays with one row per codebook entry. taming's remap (`quantize.used`) selects some of the rows.
_ENTRIES = (
    "quantize.embedding.weight",
    "quantize.embedding.cluster_size",
    "quantize.embedding.embed_avg",
    "quantize.embed.weight",
    "quantize.proj.weight",
    "quantize.proj.bias",
)
# Names that files use for a moving average (EMA) of the weights, which is preferred to the weights.
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
# Prefixes to prefer, in this order, if a file contains several copies of the model.
_PREFERRED_PREFIXES = (
    "state_dict.first_stage_model.",
    "first_stage_model.",
    "state_dict.",
)
# Prefix of moving averages in latent-diffusion and Open-MAGVIT2, whose names have no dots.
_UNDOTTED_AVERAGES = "model_ema."


@dataclasses.dataclass(frozen=True)
class FoundTokenizer:
    """A tokenizer in a weight file.

    Attributes:
      family: the codebase it is from.
      arrays: its arrays, by the family's names.
      carried: other arrays that belong to it, by their original names: those of its training loss,
        a remap, and the codebook with the entries that the remap leaves out.
      sections: sections of the config, with the fields that differ from their defaults.
      resolution_assumed: whether the size of the training images is not known from any source.
      averaged: whether the arrays are moving averages of the weights.
      other_arrays: first part of the names of the other arrays in the file -> number of arrays.
      notes: sentences to show to the user.
    """

    family: Family
    arrays: dict[str, np.ndarray]
    carried: dict[str, np.ndarray]
    sections: dict[str, Any]
    resolution_assumed: bool
    averaged: bool
    other_arrays: Mapping[str, int]
    notes: tuple[str, ...] = ()


def find_tokenizer(
    weights: Weights, name: str | None, resolution: int | None = None
) -> FoundTokenizer:
    """Finds the tokenizer in a weight file, and derives its config from the shapes of its arrays.

    Args:
      weights: the file.
      name: the family, a key of `FAMILIES`; None detects it by the names of the arrays.
      resolution: side of the training images in pixels; None takes it from the config.json, or else
        assumes 256.

    Raises:
      UserError: no known family uses such names, or vq_jax does not support the architecture.
    """
    arrays = _with_current_names(weights.arrays)
    for family in [FAMILIES[name]] if name else [f for f in FAMILIES.values() if f.detectable]:
        prefixes = {
            m[1]
            for m in (re.match(rf"((?:.*[./])?){family.signature}", key) for key in arrays)
            if m and not m[1].startswith(("cond_stage_model.", "state_dict.cond_stage_model."))
        }
        if not prefixes:
            continue
        prefix = min(prefixes, key=_preference)
        own = {key[len(prefix) :]: a for key, a in arrays.items() if key.startswith(prefix)}
        carried = {key: array for key, array in own.items() if re.match(_CARRIED, key)}
        averages = {
            key: arrays[short]
            for key in own
            if (short := f"{prefix}{_UNDOTTED_AVERAGES}{key.replace('.', '')}") in arrays
        }
        own = {
            key: array
            for key, array in (own | averages).items()
            if not re.match(rf"model_ema\.|{_CARRIED}|{family.ignored}", key)
        }
        others = (key for key in arrays if key.removeprefix(prefix) not in own | carried)
        other_arrays = Counter(re.split(r"[./]", key.removeprefix(prefix))[0] for key in others)
        notes = []
        if "quantize.used" in carried:
            own, whole = _remapped(own, carried["quantize.used"])
            carried |= whole
            notes.append(
                f"the remap is applied: codes are the {len(carried['quantize.used'])} entries that "
                "it uses; if another entry is nearest, vq_jax takes the nearest used one, where the "
                "original draws a random code"
            )
        if missing := family.assumed_fields.keys() - weights.config_json.keys():
            fields = ", ".join(
                f"{field} {family.assumed_fields[field]}" for field in sorted(missing)
            )
            notes.append(f"assumed, because there is no config.json with it: {fields}")
        sections = family.read(own, weights.config_json | {"resolution": resolution})
        averaged = bool(averages) or _is_average(prefix)
        side = weights.config_json.get("sample_size") if resolution is None else resolution
        return FoundTokenizer(
            family=family,
            arrays=own,
            carried=carried,
            sections=sections,
            resolution_assumed=side != sections["data"]["resolution"],
            averaged=averaged,
            other_arrays=other_arrays,
            notes=tuple(notes),
        )
    known = ", ".join(FAMILIES)
    shown = ", ".join(key[:120] for key in sorted(arrays)[:4])
    raise UserError(
        f"{weights.path} contains no tokenizer of {'a known format' if name is None else name}: "
        f"its arrays are named {shown}, ...; known formats are {known}"
    )


def _is_average(prefix: str) -> bool:
    return not _AVERAGED.isdisjoint(re.split(r"[./]", prefix))


def _preference(prefix: str) -> tuple[bool, int, int]:
    """Sort key of the copies of a model in a file, by the prefix of their names: best first."""
    rank = (
        _PREFERRED_PREFIXES.index(prefix)
        if prefix in _PREFERRED_PREFIXES
        else len(_PREFERRED_PREFIXES)
    )
    return not _is_average(prefix), rank, len(prefix)


def _remapped(
    arrays: dict[str, np.ndarray], used: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Applies taming's remap.

    Args:
      arrays: the tokenizer's arrays.
      used: indices of the entries that the remap uses, in its order.

    Returns:
      the arrays with only the used entries; the arrays of `_ENTRIES` with all entries.
    """
    whole = {name: arrays[name] for name in _ENTRIES if name in arrays}
    fits = used.ndim == 1 and used.dtype.kind in "iu" and 0 < used.size == len(np.unique(used))
    if not fits or any(
        a.ndim < 1 or used.max() >= len(a) or used.min() < 0 for a in whole.values()
    ):
        raise UserError("the remap (quantize.used) does not match the codebook")
    return arrays | {name: array[used] for name, array in whole.items()}, whole


def _with_current_names(arrays: Arrays) -> dict[str, np.ndarray]:
    """Renames the attention layers of old diffusers versions to the current names, and splits VAR's."""
    old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

    def rename(key: str) -> str:
        found = re.match(r"(.*attentions\.\d+)\.(query|key|value|proj_attn)\.(\w+)$", key)
        return f"{found[1]}.{old[found[2]]}.{found[3]}" if found else key

    return split_qkv({rename(key): array for key, array in arrays.items()})


def find_discriminator(weights: Weights) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Finds the PatchGAN in a training checkpoint of taming or LlamaGen.

    Returns:
      the fields of `config.discriminator`, and the arrays by our paths; None if there is no
      discriminator, or one of another architecture.
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
    table = names.Names.from_rows(names.patchgan(n_layers))
    arrays, used = table.to_ours(own, table.leaves)
    if own.keys() - used - {k for k in own if re.search(r"running_|num_batches", k)}:
        return None  # It has other layers, such as ActNorm.
    section = {
        "name": "patchgan",
        "ndf": shape_of(own, "main.0.weight", 4)[0],
        "n_layers": n_layers,
    }
    return section, arrays


def find_lpips(weights: Weights) -> dict[str, np.ndarray]:
    """Finds LPIPS on VGG16 in a training checkpoint.

    Returns:
      the arrays by our paths; {} if LPIPS is not in the file, or not complete.
    """
    found = [
        re.match(r"(.*perceptual_loss\.)net\.slice1\.0\.weight$", key) for key in weights.arrays
    ]
    prefix = next((m[1] for m in found if m), None)
    if prefix is None:
        return {}
    table = names.Names.from_rows(names.lpips_vgg())
    own = {k[len(prefix) :]: a for k, a in weights.arrays.items() if k.startswith(prefix)}
    arrays, _ = table.to_ours(own, table.leaves)
    complete = len(arrays) == len(table.leaves) and all(
        arrays[f"lpips/conv_{j}"].shape[3:] == arrays[f"lpips/bias_{j}"].shape for j in range(13)
    )
    return arrays if complete else {}

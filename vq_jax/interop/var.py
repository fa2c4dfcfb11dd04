"""Reads and writes VAR's tokenizer and transformer (Tian et al. 2024, FoundationVision/VAR)."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from vq_jax.codes import levels_of
from vq_jax.errors import UserError
from vq_jax.interop.names import Names, Row
from vq_jax.interop.weights import flat_numpy

# Sides of the scales of the published models, by the side of the latents' grid: 256 and 512 pixels.
_SCALES = {
    16: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    32: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
}
_QKV = r"(.*\.attn(?:_\d+|\.\d+))\.qkv\.(weight|bias)$"
# Field of config.json with the sides of the scales, which no array gives.
SCALES = "v_patch_nums"


# --- tokenizers -----------------------------------------------------------------------------------


def split_qkv(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Splits the joint convolutions of VAR's attention layers into `q`, `k` and `v`."""
    found = {}
    for name, array in arrays.items():
        match = re.match(_QKV, name)
        if match and array.ndim in (1, 4) and len(array) % 3 == 0:
            for part, values in zip("qkv", np.split(array, 3), strict=True):
                found[f"{match[1]}.{part}.{match[2]}"] = values
        else:
            found[name] = array
    return found


def join_qkv(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inverts `split_qkv`."""
    found = {}
    for name, array in arrays.items():
        match = re.match(r"(.*\.attn(?:_\d+|\.\d+))\.([qkv])\.(weight|bias)$", name)
        if match is None:
            found[name] = array
        elif match[2] == "q":
            parts = [np.asarray(arrays[f"{match[1]}.{part}.{match[3]}"]) for part in "qkv"]
            found[f"{match[1]}.qkv.{match[3]}"] = np.concatenate(parts)
    return found


def read_scales(config_json: Mapping[str, Any], side: int) -> tuple[int, ...]:
    """Returns the sides of the scales.

    Args:
      config_json: content of config.json, which may have them.
      side: of the latents' grid.

    Raises:
      UserError: they are not known.
    """
    inner = config_json.get("vae_kwargs")
    inner = inner if isinstance(inner, dict) else {}
    given = config_json.get(SCALES, inner.get(SCALES))
    if given is None and side in _SCALES:
        return _SCALES[side]
    if not isinstance(given, list | tuple) or not all(isinstance(n, int) for n in given):
        raise UserError(
            f"the sides of the scales are not known for a grid of {side}x{side}: put a config.json with "
            f"{SCALES} beside the file, or give resolution 256 or 512"
        )
    return tuple(given)


# --- transformers ---------------------------------------------------------------------------------


def rows(layers: int) -> Iterator[Row]:
    """Yields the rows of VAR's transformer; see `names.Names`."""
    for theirs, ours, kind in (
        ("word_embed", "inputs", "linear"),
        ("class_emb.weight", "labels/embedding", "array"),
        ("pos_start", "start", "row"),
        ("pos_1LC", "places", "row"),
        ("lvl_embed.weight", "levels", "array"),
        ("head_nm.ada_lin.1", "modulation_out", "linear"),
        ("head", "head", "linear"),
    ):
        yield Row(theirs, ours, kind)
    for i in range(layers):
        for theirs, ours, kind in (
            ("attn.mat_qkv", "qkv", "linear"),
            ("attn.q_bias", "q_bias", "array"),
            ("attn.v_bias", "v_bias", "array"),
            ("attn.scale_mul_1H11", "scale", "channels"),
            ("attn.proj", "out", "linear"),
            ("ffn.fc1", "up", "linear"),
            ("ffn.fc2", "down", "linear"),
            ("ada_lin.1", "modulation", "linear"),
        ):
            yield Row(f"blocks.{i}.{theirs}", f"block_{i}/{ours}", kind)


def to_var(params: Any, grids: tuple[tuple[int, ...], ...]) -> dict[str, np.ndarray]:
    """Converts the params of a `NextScale` prior to VAR's state dict, with its buffers.

    Args:
      params: nested dicts.
      grids: grids of the scales.
    """
    arrays = flat_numpy(params)
    layers = sum(name.endswith("/q_bias") for name in arrays)
    found, unknown = Names.from_rows(rows(layers)).to_theirs(arrays)
    assert not unknown, unknown
    width = len(arrays["block_0/q_bias"])
    levels = levels_of(grids)
    seen = levels[:, None] >= levels[None, :]
    found["lvl_1L"] = levels[None]
    found["attn_bias_for_masking"] = np.where(seen, 0, -np.inf).astype(np.float32)[None, None]
    for i in range(layers):
        found[f"blocks.{i}.attn.zero_k_bias"] = np.zeros(width, np.float32)
    return found

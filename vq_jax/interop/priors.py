"""Priors of other codebases: taming's minGPT and MaskGIT's transformer."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vq_jax.errors import UserError, first_line
from vq_jax.interop.weights import Weights, listing

_MINGPT = r"(.*\.|)tok_emb\.weight$"
_MASKGIT = r"(.*/|)Embed_0/word_embeddings/embedding$"


@dataclasses.dataclass(frozen=True)
class FoundPrior:
    """A prior in a file of weights.

    Attributes:
      format: "taming_transformer" or "maskgit_transformer".
      name: in `PRIORS`.
      fields: of `config.prior`.
      sampling: of `config.sampling`, what its authors draw with.
      classes: how many labels it has.
      params: its arrays, by our paths.
    """

    format: str
    name: str
    fields: dict[str, Any]
    sampling: dict[str, Any]
    classes: int
    params: dict[str, np.ndarray]


def holds_prior(weights: Weights) -> str | None:
    """Which kind of prior a file holds, by the names of its arrays; None for none."""
    for key in weights.arrays:
        if re.match(_MINGPT, key):
            return "taming_transformer"
        if re.match(_MASKGIT, key):
            return "maskgit_transformer"
    return None


def without_prior(weights: Weights) -> dict[str, np.ndarray]:
    """The arrays of a file that are not of its prior."""
    pattern = {"taming_transformer": _MINGPT, "maskgit_transformer": _MASKGIT}
    if (kind := holds_prior(weights)) is None:
        return weights.arrays
    prefix = _prefix(weights, pattern[kind])
    return {
        key: array
        for key, array in weights.arrays.items()
        if not (prefix and key.startswith(prefix))
    }


def _prefix(weights: Weights, pattern: str) -> str:
    return next(m[1] for m in (re.match(pattern, key) for key in weights.arrays) if m)


class _Reader:
    """Arrays by their names, all of which are known to be there, and no others."""

    def __init__(self, weights: Weights, pattern: str, idle: str = r"$^"):
        prefix = _prefix(weights, pattern)
        self.path = weights.path
        self.arrays = {
            key.removeprefix(prefix): array
            for key, array in weights.arrays.items()
            if key.startswith(prefix) and not re.search(idle, key)
        }

    def count(self, pattern: str) -> int:
        """How many layers there are."""
        found = {int(m[1]) for m in (re.match(pattern, name) for name in self.arrays) if m}
        return next(n for n in range(len(found) + 1) if n not in found)

    def check(self, ranks: Mapping[str, int]) -> None:
        """Raises UserError unless there are arrays of these names and ranks, and no others."""
        lines = [f"missing: {name}" for name in sorted(ranks.keys() - self.arrays.keys())]
        left = sorted(self.arrays.keys() - ranks.keys())
        lines += [f"left over: {name}, {self.arrays[name].shape}" for name in left]
        lines += [
            f"of another shape: {name} is {self.arrays[name].shape}"
            for name in sorted(ranks.keys() & self.arrays.keys())
            if self.arrays[name].ndim != ranks[name]
        ]
        if lines:
            raise UserError(f"{self.path} does not hold what it should:" + listing(lines))

    def __call__(self, name: str) -> np.ndarray:
        return np.asarray(self.arrays[name], np.float32)


def read_prior(
    weights: Weights,
    grid: tuple[int, ...],
    num_codes: int,
    classes: int,
    heads: int | None,
    sos_token: int = 0,
) -> FoundPrior:
    """The prior in a file.

    Args:
      weights: the file.
      grid: positions of an image's codes.
      num_codes: of the tokenizer.
      classes: of taming's, how many of its codes stand for classes; 0 for none.
      heads: of taming's, which its arrays do not tell (`n_head` in its yaml).
      sos_token: of taming's, the token that stands before the codes where there is no class.

    Raises:
      UserError: arrays are missing or left over, or it is conditioned on more than a class.
    """
    try:
        if holds_prior(weights) == "maskgit_transformer":
            return _read_maskgit(weights, grid, num_codes)
        return _read_mingpt(weights, grid, num_codes, classes, heads, sos_token)
    except ValueError as e:  # arrays that do not fit together
        raise UserError(f"{weights.path}: its arrays do not fit together: {first_line(e)}") from e


def _read_mingpt(
    weights: Weights,
    grid: tuple[int, ...],
    num_codes: int,
    classes: int,
    heads: int | None,
    sos_token: int,
) -> FoundPrior:
    """Esser et al. 2021's second stage: [class or start token, codes], each from those before it."""
    if any("cond_stage_model." in name for name in weights.arrays):
        raise UserError(
            f"{weights.path} is conditioned on an image of its own kind (cond_stage_model): only "
            "unconditional and class-conditional transformers have a form here"
        )
    if heads is None:
        raise UserError(
            f"{weights.path} does not say how many heads it has: --heads=N, n_head in its yaml"
        )
    read = _Reader(weights, _MINGPT, r"attn\.mask$")
    layers = read.count(r"blocks\.(\d{1,4})\.")
    norms = ["ln_f", *(f"blocks.{i}.{name}" for i in range(layers) for name in ("ln1", "ln2"))]
    dense = ("attn.query", "attn.key", "attn.value", "attn.proj", "mlp.0", "mlp.2")
    ranks = {"tok_emb.weight": 2, "pos_emb": 3, "head.weight": 2}
    ranks |= {f"{name}.{leaf}": 1 for name in norms for leaf in ("weight", "bias")}
    for name in (f"blocks.{i}.{name}" for i in range(layers) for name in dense):
        ranks |= {f"{name}.weight": 2, f"{name}.bias": 1}
    read.check(ranks)
    tokens, places = read("tok_emb.weight"), read("pos_emb")[0]
    vocabulary, width = tokens.shape
    positions = int(np.prod(grid))
    if len(places) < positions:  # of more, the first are those that it has learned
        raise UserError(
            f"{weights.path} reads {len(places)} tokens, and the tokenizer's images have {positions}: "
            "it belongs to another tokenizer, or --resolution is another"
        )
    if not 0 <= sos_token < vocabulary:
        raise UserError(f"--sos_token={sos_token}: it knows {vocabulary} tokens, from 0")
    if vocabulary < max(num_codes, classes):
        raise UserError(
            f"{weights.path} knows {vocabulary} tokens, and the tokenizer has {num_codes} codes"
            + (f", --classes is {classes}" if classes > vocabulary else "")
        )
    zero = np.zeros((1, width), np.float32)
    params = {
        "codes/embedding": np.concatenate([tokens[:num_codes], zero]),
        # The start token, or the label, is the code of that number.
        "labels/embedding": np.concatenate([tokens[:classes], tokens[sos_token][None]]),
        "books": zero,
        "places": np.concatenate([places, zero])[: positions + 1],
        "norm_out/scale": read("ln_f.weight"),
        "norm_out/bias": read("ln_f.bias"),
        "head/kernel": read("head.weight").T[None, ..., :num_codes],
    }
    for i in range(layers):
        theirs, ours = f"blocks.{i}", f"block_{i}"
        for name, path in (("ln1", "norm_attention"), ("ln2", "norm_feed_forward")):
            params[f"{ours}/{path}/scale"] = read(f"{theirs}.{name}.weight")
            params[f"{ours}/{path}/bias"] = read(f"{theirs}.{name}.bias")
        three = [f"{theirs}.attn.{name}" for name in ("query", "key", "value")]
        params[f"{ours}/qkv/kernel"] = np.concatenate(
            [read(f"{n}.weight").T for n in three], axis=1
        )
        params[f"{ours}/qkv/bias"] = np.concatenate([read(f"{n}.bias") for n in three])
        for name, path in (("attn.proj", "out"), ("mlp.0", "up"), ("mlp.2", "down")):
            params[f"{ours}/{path}/kernel"] = read(f"{theirs}.{name}.weight").T
            params[f"{ours}/{path}/bias"] = read(f"{theirs}.{name}.bias")
    fields = {
        "layers": layers,
        "width": width,
        "heads": heads,
        "hidden": params["block_0/up/kernel"].shape[1] if layers else 0,
        "position": "learned",
        "norm": "layer",
        "activation": "gelu_erf",
    }
    sampling = {"top_k": 600, "top_p": 0.92}
    return FoundPrior("taming_transformer", "causal", fields, sampling, classes, params)


def _read_maskgit(weights: Weights, grid: tuple[int, ...], num_codes: int) -> FoundPrior:
    """Chang et al. 2022's: [num_codes + class, codes], masked ones the vocabulary's last."""
    read = _Reader(weights, _MASKGIT)
    layers = read.count(r"TransformerLayer_(\d{1,4})/")
    ranks = {f"Embed_0/{name}_embeddings/embedding": 2 for name in ("word", "position")}
    ranks |= {"MlmLayer_0/mlm_dense/kernel": 2, "MlmLayer_0/mlm_dense/bias": 1}
    norms = [("Embed_0/embeddings_ln", "norm_in"), ("MlmLayer_0/mlm_ln", "norm_out")]
    for i in range(layers):
        theirs, ours = f"TransformerLayer_{i}", f"block_{i}"
        for name in ("query", "key", "value", "out"):
            place = f"{theirs}/Attention_0/self_attention/{name}"
            ranks |= {f"{place}/kernel": 3, f"{place}/bias": 1 if name == "out" else 2}
        for name in ("intermediate_output", "layer_output"):
            ranks |= {f"{theirs}/Mlp_0/{name}/kernel": 2, f"{theirs}/Mlp_0/{name}/bias": 1}
        norms += [
            (f"{theirs}/Attention_0/attention_output_ln", f"{ours}/norm_attention"),
            (f"{theirs}/Mlp_0/layer_output_ln", f"{ours}/norm_feed_forward"),
        ]
    ranks |= {f"{name}/{leaf}": 1 for name, _ in norms for leaf in ("scale", "bias")}
    ranks["MlmLayer_0/mlm_bias/bias"] = 1
    read.check(ranks)
    words = read("Embed_0/word_embeddings/embedding")
    places = read("Embed_0/position_embeddings/embedding")
    vocabulary, width = words.shape
    positions = int(np.prod(grid))
    classes = vocabulary - num_codes - 1
    if len(places) != positions + 1 or classes < 1:
        raise UserError(
            f"{weights.path} reads {len(places)} of {vocabulary} tokens, and the tokenizer's images "
            f"have {positions} of {num_codes} codes: it belongs to another tokenizer"
        )
    params = {
        "codes/embedding": np.concatenate([words[:num_codes], words[-1:]]),
        "labels/embedding": np.concatenate([words[num_codes:-1], np.zeros((1, width), np.float32)]),
        "books": np.zeros((1, width), np.float32),
        "places": places,
        "bias_out": read("MlmLayer_0/mlm_bias/bias")[..., :num_codes].reshape(1, -1),
        "dense_out/kernel": read("MlmLayer_0/mlm_dense/kernel"),
        "dense_out/bias": read("MlmLayer_0/mlm_dense/bias"),
    }
    heads = 1
    for i in range(layers):
        theirs, ours = f"TransformerLayer_{i}", f"block_{i}"
        attention = f"{theirs}/Attention_0/self_attention"
        three = [f"{attention}/{name}" for name in ("query", "key", "value")]
        heads = read(f"{three[0]}/kernel").shape[1]
        kernels = [read(f"{n}/kernel").reshape(width, -1) for n in three]
        params[f"{ours}/qkv/kernel"] = np.concatenate(kernels, axis=1)
        params[f"{ours}/qkv/bias"] = np.concatenate([read(f"{n}/bias").reshape(-1) for n in three])
        params[f"{ours}/out/kernel"] = read(f"{attention}/out/kernel").reshape(-1, width)
        params[f"{ours}/out/bias"] = read(f"{attention}/out/bias")
        for name, path in (("intermediate_output", "up"), ("layer_output", "down")):
            for leaf in ("kernel", "bias"):
                params[f"{ours}/{path}/{leaf}"] = read(f"{theirs}/Mlp_0/{name}/{leaf}")
    for name, path in norms:
        for leaf in ("scale", "bias"):
            params[f"{path}/{leaf}"] = read(f"{name}/{leaf}")
    fields = {
        "layers": layers,
        "width": width,
        "heads": heads,
        "hidden": params["block_0/up/bias"].shape[-1] if layers else 0,
        "position": "learned",
        "norm": "bert",
        "activation": "gelu",
    }
    sampling = {"steps": 16, "choice_temperature": 4.5}
    return FoundPrior("maskgit_transformer", "masked", fields, sampling, classes, params)

"""Reads the priors of other codebases: taming's minGPT, MaskGIT's and VAR's transformers."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vq_jax.codes import CodeSpec
from vq_jax.errors import UserError, first_line
from vq_jax.interop import var
from vq_jax.interop.names import Names
from vq_jax.interop.weights import Weights, listing

# Names that identify a prior. The group is the prefix of all its arrays.
_MINGPT = r"(.*\.|)tok_emb\.weight$"
_MASKGIT = r"(.*/|)Embed_0/word_embeddings/embedding$"
_VAR = r"(.*\.|)pos_1LC$"
# format -> the name that identifies it
SIGNATURES = {
    "taming_transformer": _MINGPT,
    "maskgit_transformer": _MASKGIT,
    "var_transformer": _VAR,
}


@dataclasses.dataclass(frozen=True)
class FoundPrior:
    """A prior in a weight file.

    Attributes:
      format: a key of `SIGNATURES`.
      name: the kind of prior, a key of `PRIORS`.
      fields: fields of `config.prior`.
      sampling: fields of `config.sampling`, with the authors' settings.
      label_dropout: share of its training examples without a label.
      classes: number of classes, 0 for an unconditional prior.
      params: path in the params -> float32 array.
    """

    format: str
    name: str
    fields: dict[str, Any]
    sampling: dict[str, Any]
    classes: int
    params: dict[str, np.ndarray]
    label_dropout: float = 0.0


def detect_prior(weights: Weights) -> str | None:
    """Returns the format of the prior in a file by the names of its arrays, None for no prior."""
    for key in weights.arrays:
        for format, pattern in SIGNATURES.items():
            if re.match(pattern, key):
                return format
    return None


def without_prior(weights: Weights) -> dict[str, np.ndarray]:
    """Returns the arrays of a file without those of its prior."""
    if (kind := detect_prior(weights)) is None:
        return weights.arrays
    prefix = _prefix(weights, SIGNATURES[kind])
    return {
        key: array
        for key, array in weights.arrays.items()
        if not (prefix and key.startswith(prefix))
    }


def _prefix(weights: Weights, pattern: str) -> str:
    """Returns the prefix of the names of a prior's arrays."""
    return next(m[1] for m in (re.match(pattern, key) for key in weights.arrays) if m)


class _Reader:
    """The arrays of a prior, by their names without the prefix.

    Args:
      weights: the file.
      pattern: one of `SIGNATURES`.
      ignored: regular expression of the names of arrays that are not needed.
    """

    def __init__(self, weights: Weights, pattern: str, ignored: str = r"$^"):
        prefix = _prefix(weights, pattern)
        self.path = weights.path
        self.arrays = {
            key.removeprefix(prefix): array
            for key, array in weights.arrays.items()
            if key.startswith(prefix) and not re.search(ignored, key)
        }

    def count(self, pattern: str) -> int:
        """Counts the layers: consecutive numbers from 0 in a pattern's group."""
        found = {int(m[1]) for m in (re.match(pattern, name) for name in self.arrays) if m}
        return next(n for n in range(len(found) + 1) if n not in found)

    def check(self, ranks: Mapping[str, int]) -> None:
        """Checks that the arrays have exactly these names and ranks.

        Raises:
          UserError: arrays are missing, unexpected or of another rank; the text lists all of them.
        """
        lines = [f"missing: {name}" for name in sorted(ranks.keys() - self.arrays.keys())]
        unexpected = sorted(self.arrays.keys() - ranks.keys())
        lines += [f"unexpected: {name}, {self.arrays[name].shape}" for name in unexpected]
        lines += [
            f"wrong shape: {name} is {self.arrays[name].shape}, expected {ranks[name]} dimensions"
            for name in sorted(ranks.keys() & self.arrays.keys())
            if self.arrays[name].ndim != ranks[name]
        ]
        if lines:
            raise UserError(f"{self.path} does not contain the expected arrays:" + listing(lines))

    def __call__(self, name: str) -> np.ndarray:
        """Returns an array as float32."""
        return np.asarray(self.arrays[name], np.float32)


def read_prior(
    weights: Weights,
    codes: CodeSpec,
    classes: int,
    heads: int | None,
    sos_token: int = 0,
) -> FoundPrior:
    """Reads the prior in a weight file.

    Args:
      weights: the file; it must contain a prior (see `detect_prior`).
      codes: what the tokenizer's codes look like.
      classes: number of classes of taming's transformer, 0 for an unconditional one.
      heads: number of attention heads of taming's transformer (`n_head` in its yaml), which its
        arrays do not give.
      sos_token: start token of taming's transformer, used without a class.

    Raises:
      UserError: arrays are missing or unexpected, do not match the tokenizer, or the prior is
        conditioned on something other than a class.
    """
    try:
        kind = detect_prior(weights)
        if kind == "var_transformer":
            return _read_var(weights, codes)
        if kind == "maskgit_transformer":
            return _read_maskgit(weights, codes.grid, codes.num_codes)
        return _read_mingpt(weights, codes.grid, codes.num_codes, classes, heads, sos_token)
    except ValueError as e:  # From NumPy, for incompatible shapes.
        raise UserError(
            f"{weights.path}: its arrays have inconsistent shapes: {first_line(e)}"
        ) from e


def _read_mingpt(
    weights: Weights,
    grid: tuple[int, ...],
    num_codes: int,
    classes: int,
    heads: int | None,
    sos_token: int,
) -> FoundPrior:
    """Reads the autoregressive transformer of Esser et al. 2021.

    Its sequence is [class or start token, codes]. It is one function because it is one table of names.
    """
    if any("cond_stage_model." in name for name in weights.arrays):
        raise UserError(
            f"{weights.path} is conditioned on an image (cond_stage_model): only unconditional and "
            "class-conditional transformers are supported"
        )
    if heads is None:
        raise UserError(
            f"{weights.path} does not contain the number of attention heads: give heads (n_head in "
            "its yaml)"
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
    tokens, position_embedding = read("tok_emb.weight"), read("pos_emb")[0]
    vocabulary, width = tokens.shape
    positions = int(np.prod(grid))
    if len(position_embedding) < positions:  # Positions beyond the image's are unused.
        raise UserError(
            f"{weights.path} has {len(position_embedding)} positions, but the tokenizer's images "
            f"have {positions} codes: give the right tokenizer, or another resolution"
        )
    if not 0 <= sos_token < vocabulary:
        raise UserError(f"sos_token is {sos_token}: use 0 to {vocabulary - 1}")
    if vocabulary < max(num_codes, classes):
        raise UserError(
            f"{weights.path} has {vocabulary} tokens, but the tokenizer has {num_codes} codes"
            + (f" and classes is {classes}" if classes > vocabulary else "")
            + ": give the right tokenizer and classes"
        )
    zero = np.zeros((1, width), np.float32)
    params = {
        "codes/embedding": np.concatenate([tokens[:num_codes], zero]),
        # taming uses the embedding of code i for class i, and that of `sos_token` for no class.
        "labels/embedding": np.concatenate([tokens[:classes], tokens[sos_token][None]]),
        "books": zero,
        "places": np.concatenate([position_embedding, zero])[: positions + 1],
        "norm_out/scale": read("ln_f.weight"),
        "norm_out/bias": read("ln_f.bias"),
        "head/kernel": read("head.weight").T[None, ..., :num_codes],
    }
    for i in range(layers):
        theirs, ours = f"blocks.{i}", f"block_{i}"
        for name, path in (("ln1", "norm_attention"), ("ln2", "norm_feed_forward")):
            params[f"{ours}/{path}/scale"] = read(f"{theirs}.{name}.weight")
            params[f"{ours}/{path}/bias"] = read(f"{theirs}.{name}.bias")
        qkv = [f"{theirs}.attn.{name}" for name in ("query", "key", "value")]
        params[f"{ours}/qkv/kernel"] = np.concatenate([read(f"{n}.weight").T for n in qkv], axis=1)
        params[f"{ours}/qkv/bias"] = np.concatenate([read(f"{n}.bias") for n in qkv])
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
    """Reads the masked transformer of Chang et al. 2022.

    Its sequence is [num_codes + class, codes]. The mask token is the last of the vocabulary. It is one
    function because it is one table of names.
    """
    read = _Reader(weights, _MASKGIT)
    layers = read.count(r"TransformerLayer_(\d{1,4})/")
    ranks = {f"Embed_0/{name}_embeddings/embedding": 2 for name in ("word", "position")}
    ranks |= {"MlmLayer_0/mlm_dense/kernel": 2, "MlmLayer_0/mlm_dense/bias": 1}
    norms = [("Embed_0/embeddings_ln", "norm_in"), ("MlmLayer_0/mlm_ln", "norm_out")]
    for i in range(layers):
        theirs, ours = f"TransformerLayer_{i}", f"block_{i}"
        for name in ("query", "key", "value", "out"):
            layer = f"{theirs}/Attention_0/self_attention/{name}"
            ranks |= {f"{layer}/kernel": 3, f"{layer}/bias": 1 if name == "out" else 2}
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
    position_embedding = read("Embed_0/position_embeddings/embedding")
    vocabulary, width = words.shape
    positions = int(np.prod(grid))
    classes = vocabulary - num_codes - 1
    if len(position_embedding) != positions + 1 or classes < 1:
        raise UserError(
            f"{weights.path} has {len(position_embedding)} positions and {vocabulary} tokens, which "
            f"do not match the tokenizer's {positions} positions and {num_codes} codes: give the "
            "right tokenizer"
        )
    params = {
        "codes/embedding": np.concatenate([words[:num_codes], words[-1:]]),
        "labels/embedding": np.concatenate([words[num_codes:-1], np.zeros((1, width), np.float32)]),
        "books": np.zeros((1, width), np.float32),
        "places": position_embedding,
        "bias_out": read("MlmLayer_0/mlm_bias/bias")[..., :num_codes].reshape(1, -1),
        "dense_out/kernel": read("MlmLayer_0/mlm_dense/kernel"),
        "dense_out/bias": read("MlmLayer_0/mlm_dense/bias"),
    }
    heads = 1
    for i in range(layers):
        theirs, ours = f"TransformerLayer_{i}", f"block_{i}"
        attention = f"{theirs}/Attention_0/self_attention"
        qkv = [f"{attention}/{name}" for name in ("query", "key", "value")]
        heads = read(f"{qkv[0]}/kernel").shape[1]
        kernels = [read(f"{n}/kernel").reshape(width, -1) for n in qkv]
        params[f"{ours}/qkv/kernel"] = np.concatenate(kernels, axis=1)
        params[f"{ours}/qkv/bias"] = np.concatenate([read(f"{n}/bias").reshape(-1) for n in qkv])
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


def _read_var(weights: Weights, codes: CodeSpec) -> FoundPrior:
    """Reads the next-scale transformer of Tian et al. 2024."""
    read = _Reader(weights, _VAR, r"(^|\.)(zero_k_bias|lvl_1L|attn_bias_for_masking)$")
    if any(name.startswith("shared_ada_lin.") for name in read.arrays):
        raise UserError(
            f"{weights.path} has a modulation that all layers share (shared_aln, VAR's d36): it is not "
            "supported"
        )
    if not (layers := read.count(r"blocks\.(\d{1,4})\.")):
        raise UserError(f"{weights.path} has no layers (blocks.0)")
    table = Names.from_rows(var.rows(layers))
    ranks = {name: 2 for name, _ in table.leaves.values()}
    ranks |= {name: 1 for name in ranks if name.endswith("bias")}
    ranks |= {name: 4 for name in ranks if name.endswith("scale_mul_1H11")}
    ranks |= {"pos_1LC": 3, "pos_start": 3}
    ranks = {name: rank for name, rank in ranks.items() if not name.endswith("mat_qkv.bias")}
    read.check(ranks)
    places, entries = read("pos_1LC"), read("head.weight")
    if not codes.grids or places.shape[1] != codes.length or len(entries) != codes.num_codes:
        raise UserError(
            f"{weights.path} has {places.shape[1]} positions of scales and {len(entries)} codes, and the "
            f"tokenizer {codes.length} and {codes.num_codes}: give the right tokenizer"
        )
    params, _ = table.to_ours(read.arrays, table.leaves)
    width = places.shape[2]
    fields = {
        "layers": layers,
        "width": width,
        "heads": read.arrays["blocks.0.attn.scale_mul_1H11"].size,
        "hidden": len(read.arrays["blocks.0.ffn.fc1.bias"]),
    }
    # (1 + t) times the logits with the label minus t times those without, t = 1.5 k / (K - 1)
    sampling = {"guidance": 2.5, "guidance_schedule": "linear", "top_k": 900, "top_p": 0.96}
    classes = len(read.arrays["class_emb.weight"]) - 1
    return FoundPrior(
        "var_transformer", "next_scale", fields, sampling, classes, params, label_dropout=0.1
    )

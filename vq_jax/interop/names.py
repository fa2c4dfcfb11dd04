"""What other codebases call our arrays: a table for each, read in both directions.

A table is rows (theirs, ours, kind): a module of theirs, the path of ours, and how its arrays differ.
Our own paths are those of the variables, such as params/encoder/conv_in.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np


class Row(NamedTuple):
    """One module, or one array, under both names."""

    theirs: str
    ours: str
    kind: str


class _Leaf(NamedTuple):
    theirs: str  # what follows the module's name
    ours: str
    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _transpose(x: np.ndarray) -> np.ndarray:
    return x.T


_bias = _Leaf(".bias", "/bias", _same, _same)
_kernel = (lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
# The arrays of a module, by its kind. Those that our own tree does not have (a bias, say) are left out.
_KINDS: dict[str, tuple[_Leaf, ...]] = {
    # [O, I, h, w] to [h, w, I, O]
    "conv": (_Leaf(".weight", "/kernel", *_kernel), _bias),
    "kernel": (_Leaf("", "", *_kernel),),
    "norm": (_Leaf(".weight", "/scale", _same, _same), _bias),
    # [O, I] to [I, O]
    "linear": (_Leaf(".weight", "/kernel", _transpose, _transpose), _bias),
    # a linear layer (or a 1x1 convolution) [O, I] to a 1x1 convolution [1, 1, I, O]
    "linear_as_conv": (
        _Leaf(
            ".weight",
            "/kernel",
            lambda x: x.reshape(x.shape[:2]).T[None, None],
            lambda x: x[0, 0].T,
        ),
        _bias,
    ),
    # a 1x1 convolution [O, I, 1, 1] to rows [O, I]
    "conv_as_rows": (
        _Leaf(".weight", "", lambda x: x.reshape(x.shape[:2]), lambda x: x[:, :, None, None]),
    ),
    "array": (_Leaf("", "", _same, _same),),
    # [1, C, 1, 1] to [C]
    "channels": (_Leaf("", "", lambda x: x.reshape(-1), lambda x: x.reshape(1, -1, 1, 1)),),
    "flax": tuple(_Leaf(f"/{n}", f"/{n}", _same, _same) for n in ("kernel", "bias", "scale")),
}


@dataclasses.dataclass(frozen=True)
class Names:
    """A table, ready to be looked up: our path -> their name and the way there and back."""

    leaves: dict[str, tuple[str, _Leaf]]

    @classmethod
    def of(cls, rows: Iterator[Row] | list[Row]) -> "Names":
        return cls(
            {
                row.ours + leaf.ours: (row.theirs + leaf.theirs, leaf)
                for row in rows
                for leaf in _KINDS[row.kind]
            }
        )

    def theirs(self, path: str) -> str | None:
        """Their name of our path, or None where they have no such array."""
        return self.leaves[path][0] if path in self.leaves else None

    def take(
        self, arrays: Mapping[str, np.ndarray], paths: Mapping[str, Any]
    ) -> tuple[dict[str, np.ndarray], set[str]]:
        """Arrays under our paths, as far as they are there, float32; and which of theirs were used.

        Args:
          arrays: theirs, by their names.
          paths: ours that are wanted.
        """
        found, used = {}, set()
        for path in paths:
            name = self.theirs(path)
            if name is not None and name in arrays:
                found[path] = _float32(_turned(self._way(path), arrays[name]))
                used.add(name)
        return found, used

    def give(self, arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
        """Arrays of ours under their names; and the paths that they have no name for."""
        known = {path for path in arrays if path in self.leaves}
        given = {
            self.leaves[path][0]: self._way(path).to_theirs(np.asarray(arrays[path]))
            for path in known
        }
        return given, sorted(arrays.keys() - known)

    def _way(self, path: str) -> _Leaf:
        return self.leaves[path][1]


def _turned(leaf: _Leaf, array: np.ndarray) -> np.ndarray:
    """Their array as ours; one of another rank stays as it is, for its shape to be told."""
    try:
        return leaf.to_ours(array)
    except (ValueError, IndexError):
        return array


def _float32(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32, copy=False) if x.dtype.kind in "fV" else x


# --- tables ---------------------------------------------------------------------------------------

# What a table needs to know: config.model's and config.quantizer's fields, and attn_levels.
Model = Mapping[str, Any]

_RESIDUAL = (("norm1", "norm"), ("conv1", "conv"), ("norm2", "norm"), ("conv2", "conv"))


def _residual(theirs: str, ours: str, shortcut: str) -> Iterator[Row]:
    for name, kind in _RESIDUAL:
        yield Row(f"{theirs}.{name}", f"{ours}/{name}", kind)
    yield Row(f"{theirs}.{shortcut}", f"{ours}/shortcut", "conv")


def _attention(theirs: str, ours: str) -> Iterator[Row]:
    yield Row(f"{theirs}.norm", f"{ours}/norm", "norm")
    for name in ("q", "k", "v"):
        yield Row(f"{theirs}.{name}", f"{ours}/{name}", "conv")
    yield Row(f"{theirs}.proj_out", f"{ours}/out", "conv")


def _ends(sides: tuple[str, ...], norm_out: str = "norm_out") -> Iterator[Row]:
    """The first and last layers of encoder and decoder."""
    for side in sides:
        for name in ("conv_in", "conv_out"):
            yield Row(f"{side}.{name}", f"params/{side}/{name}", "conv")
        yield Row(f"{side}.{norm_out}", f"params/{side}/norm_out", "norm")


def _quant_convs() -> Iterator[Row]:
    yield Row("quant_conv", "params/encoder/quant_conv", "conv")
    yield Row("post_quant_conv", "params/decoder/post_quant_conv", "conv")


def _sides(model: Model) -> Iterator[tuple[str, str, int, int]]:
    """(side, down or up, level, blocks of it) of an encoder and decoder, level by level."""
    for level in range(len(model["ch_mult"])):
        yield "encoder", "down", level, model["num_res_blocks"]
        yield "decoder", "up", level, model["num_res_blocks"] + 1


def taming(model: Model) -> Iterator[Row]:
    """taming-transformers' `VQModel` and `GumbelVQ`, latent-diffusion's and IBQ's models."""
    yield from _ends(("encoder", "decoder"))
    yield from _quant_convs()
    for side, way, level, blocks in _sides(model):
        theirs, ours = f"{side}.{way}.{level}", f"params/{side}/{way}_{level}"
        for b in range(blocks):
            yield from _residual(f"{theirs}.block.{b}", f"{ours}_block_{b}", "nin_shortcut")
            yield from _attention(f"{theirs}.attn.{b}", f"{ours}_attn_{b}")
        yield Row(f"{theirs}.{way}sample.conv", f"{ours}_{way}sample/conv", "conv")
    for side in ("encoder", "decoder"):
        for name in ("block_1", "block_2"):
            ours = f"params/{side}/mid/{name}"
            yield from _residual(f"{side}.mid.{name}", ours, "nin_shortcut")
        yield from _attention(f"{side}.mid.attn_1", f"params/{side}/mid/attn_1")
    yield Row("quantize.embedding.weight", "params/quantizer/book/codebook", "array")


def taming_gumbel(model: Model) -> Iterator[Row]:
    """taming-transformers' `GumbelVQ`: scores from a 1x1 convolution, entries beside it."""
    yield from (row for row in taming(model) if not row.theirs.startswith("quantize."))
    yield Row("quantize.embed.weight", "params/quantizer/book/codebook", "array")
    yield Row("quantize.proj", "params/quantizer/codebook_keys", "conv_as_rows")
    yield Row("quantize.proj.bias", "params/quantizer/codebook_bias", "array")


def llamagen(model: Model) -> Iterator[Row]:
    """LlamaGen's `VQModel`: the decoder's levels stand in the order in which they run."""
    yield from _ends(("encoder", "decoder"))
    yield from _quant_convs()
    last = len(model["ch_mult"]) - 1
    for side, way, level, blocks in _sides(model):
        place = level if side == "encoder" else last - level
        theirs, ours = f"{side}.conv_blocks.{place}", f"params/{side}/{way}_{level}"
        for b in range(blocks):
            yield from _residual(f"{theirs}.res.{b}", f"{ours}_block_{b}", "nin_shortcut")
            yield from _attention(f"{theirs}.attn.{b}", f"{ours}_attn_{b}")
        yield Row(f"{theirs}.{way}sample.conv", f"{ours}_{way}sample/conv", "conv")
    for side in ("encoder", "decoder"):
        for place, name in ((0, "block_1"), (2, "block_2")):
            ours = f"params/{side}/mid/{name}"
            yield from _residual(f"{side}.mid.{place}", ours, "nin_shortcut")
        yield from _attention(f"{side}.mid.1", f"params/{side}/mid/attn_1")
    yield Row("quantize.embedding.weight", "params/quantizer/book/codebook", "array")


def diffusers(model: Model) -> Iterator[Row]:
    """diffusers' `VQModel`: its attention is of linear layers, its decoder's levels run backwards."""

    def attention(theirs: str, ours: str) -> Iterator[Row]:
        yield Row(f"{theirs}.group_norm", f"{ours}/norm", "norm")
        for name, path in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "out")):
            yield Row(f"{theirs}.{name}", f"{ours}/{path}", "linear_as_conv")

    yield from _ends(("encoder", "decoder"), "conv_norm_out")
    yield from _quant_convs()
    last = len(model["ch_mult"]) - 1
    for side, way, level, blocks in _sides(model):
        place = level if side == "encoder" else last - level
        theirs, ours = f"{side}.{way}_blocks.{place}", f"params/{side}/{way}_{level}"
        for b in range(blocks):
            yield from _residual(f"{theirs}.resnets.{b}", f"{ours}_block_{b}", "conv_shortcut")
            yield from attention(f"{theirs}.attentions.{b}", f"{ours}_attn_{b}")
        yield Row(f"{theirs}.{way}samplers.0.conv", f"{ours}_{way}sample/conv", "conv")
    for side in ("encoder", "decoder"):
        for b in (0, 1):
            ours = f"params/{side}/mid/block_{b + 1}"
            yield from _residual(f"{side}.mid_block.resnets.{b}", ours, "conv_shortcut")
        yield from attention(f"{side}.mid_block.attentions.0", f"params/{side}/mid/attn_1")
    yield Row("quantize.embedding.weight", "params/quantizer/book/codebook", "array")


def magvit2(model: Model) -> Iterator[Row]:
    """Open-MAGVIT2's `VQModel`; its quantizer has nothing to keep."""
    yield from _ends(("encoder", "decoder"))
    for side, way, level, _ in _sides(model):
        theirs, ours = f"{side}.{way}.{level}", f"params/{side}/{way}_{level}"
        for b in range(model["num_res_blocks"]):
            yield from _residual(f"{theirs}.block.{b}", f"{ours}_block_{b}", "nin_shortcut")
    for level in range(len(model["ch_mult"])):
        for name in ("gamma", "beta"):
            ours = f"params/decoder/adaptive_{level}/{name}"
            yield Row(f"decoder.adaptive.{level}.{name}", ours, "linear")
        ours = f"params/encoder/down_{level}_downsample"
        yield Row(f"encoder.down.{level}.downsample", ours, "conv")
        ours = f"params/decoder/up_{level}_upsample/conv"
        yield Row(f"decoder.up.{level}.upsample.conv1", ours, "conv")
    for side in ("encoder", "decoder"):
        for b in range(model["num_res_blocks"]):
            ours = f"params/{side}/mid_block_{b}"
            yield from _residual(f"{side}.mid_block.{b}", ours, "nin_shortcut")


def maskgit(model: Model) -> Iterator[Row]:
    """MaskGIT's Flax tokenizer, whose layers are numbered as they run."""
    levels, blocks = len(model["ch_mult"]), model["num_res_blocks"]
    mid = [f"mid_block_{b}" for b in range(blocks)]
    down = [f"down_{level}_block_{b}" for level in range(levels) for b in range(blocks)]
    up = [f"up_{level}_block_{b}" for level in reversed(range(levels)) for b in range(blocks)]
    for side, names in (("encoder", down + mid), ("decoder", mid + up)):
        for i, name in enumerate(names):
            theirs, ours = f"{side}/ResBlock_{i}", f"params/{side}/{name}"
            for of_theirs, of_ours in (
                ("GroupNorm_0", "norm1"),
                ("Conv_0", "conv1"),
                ("GroupNorm_1", "norm2"),
                ("Conv_1", "conv2"),
                ("Conv_2", "shortcut"),
            ):
                yield Row(f"{theirs}/{of_theirs}", f"{ours}/{of_ours}", "flax")
        yield Row(f"{side}/GroupNorm_0", f"params/{side}/norm_out", "flax")
    convs = ["conv_in", *(f"up_{i}_upsample/conv" for i in range(levels - 1, 0, -1)), "conv_out"]
    for i, name in enumerate(convs):
        yield Row(f"decoder/Conv_{i}", f"params/decoder/{name}", "flax")
    yield Row("encoder/Conv_0", "params/encoder/conv_in", "flax")
    yield Row("encoder/Conv_1", "params/encoder/conv_out", "flax")
    yield Row("quantizer/codebook", "params/quantizer/book/codebook", "array")


def patchgan(n_layers: int) -> Iterator[Row]:
    """The PatchGAN that taming's and LlamaGen's training files hold, a list of layers."""
    yield Row("main.0", "discriminator/conv_0", "conv")
    for i in range(1, n_layers + 1):
        yield Row(f"main.{3 * i - 1}", f"discriminator/conv_{i}", "conv")
        yield Row(f"main.{3 * i}", f"discriminator/norm_{i}", "norm")
    yield Row(f"main.{3 * n_layers + 2}", "discriminator/conv_out", "conv")


def lpips_vgg() -> Iterator[Row]:
    """LPIPS on VGG16 as it lies in taming's training files: torchvision's layers in five slices."""
    slices = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
    places = [(s + 1, n) for s, numbers in enumerate(slices) for n in numbers]
    for j, (s, n) in enumerate(places):
        yield Row(f"net.slice{s}.{n}.weight", f"lpips/conv_{j}", "kernel")
        yield Row(f"net.slice{s}.{n}.bias", f"lpips/bias_{j}", "array")
    for i in range(5):
        yield Row(f"lin{i}.model.1.weight", f"lpips/linear_{i}", "channels")

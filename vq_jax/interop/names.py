"""Tables that map the array names of other codebases to vq_jax's, in both directions.

A table has one row (theirs, ours, kind) per module: its name in the other codebase, its path in
vq_jax, and how the layout of its arrays differs. "Theirs" is the other codebase's and "ours" is
vq_jax's throughout. Our paths are those of the variables, such as params/encoder/conv_in.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np


class Row(NamedTuple):
    """The two names of one module or one array; `kind` is a key of `_KINDS`."""

    theirs: str
    ours: str
    kind: str


class _Leaf(NamedTuple):
    """One array of a module: the suffixes of its names, and the conversions of its layout."""

    theirs: str
    ours: str
    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _transpose(x: np.ndarray) -> np.ndarray:
    return x.T


_bias = _Leaf(".bias", "/bias", _same, _same)
_kernel = (lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
# kind of a module -> its arrays. Arrays that our module does not have, such as a bias, are ignored.
_KINDS: dict[str, tuple[_Leaf, ...]] = {
    # Convolution: [O, I, h, w] to [h, w, I, O].
    "conv": (_Leaf(".weight", "/kernel", *_kernel), _bias),
    "kernel": (_Leaf("", "", *_kernel),),
    "norm": (_Leaf(".weight", "/scale", _same, _same), _bias),
    # Linear layer: [O, I] to [I, O].
    "linear": (_Leaf(".weight", "/kernel", _transpose, _transpose), _bias),
    # Linear layer [O, I], or 1x1 convolution [O, I, 1, 1], to 1x1 convolution [1, 1, I, O].
    "linear_as_conv": (
        _Leaf(
            ".weight",
            "/kernel",
            lambda x: x.reshape(x.shape[:2]).T[None, None],
            lambda x: x[0, 0].T,
        ),
        _bias,
    ),
    # 1x1 convolution [O, I, 1, 1] to rows [O, I].
    "conv_as_rows": (
        _Leaf(".weight", "", lambda x: x.reshape(x.shape[:2]), lambda x: x[:, :, None, None]),
    ),
    "array": (_Leaf("", "", _same, _same),),
    # Statistics of one codebook [K, ...], with an axis for codebooks added: [1, K, ...].
    "first": (_Leaf("", "", lambda x: x[None], lambda x: x[0]),),
    # 1x1 convolution [O, I, 1, 1] to linear layer [I, O].
    "conv_as_linear": (
        _Leaf(
            ".weight",
            "/kernel",
            lambda x: x.reshape(x.shape[:2]).T,
            lambda x: x.T[:, :, None, None],
        ),
        _bias,
    ),
    # Convolution of patches of an image of 3 channels, [O, 3, p, p], to linear layer [p p 3, O].
    "patches": (
        _Leaf(
            ".weight",
            "/kernel",
            lambda x: x.transpose(2, 3, 1, 0).reshape(-1, len(x)),
            lambda x: x.reshape(2 * (math.isqrt(len(x) // 3),) + (3, -1)).transpose(3, 2, 0, 1),
        ),
        _bias,
    ),
    "transposed": (_Leaf("", "", _transpose, _transpose),),
    # An array with an axis for the batch added: [1, ...] to [...].
    "row": (_Leaf("", "", lambda x: x.reshape(x.shape[1:]), lambda x: x[None]),),
    # [1, 1, W] to [W].
    "last_axis": (_Leaf("", "", lambda x: x.reshape(-1), lambda x: x[None, None]),),
    # Weights of channels: [1, C, 1, 1] to [C].
    "channels": (_Leaf("", "", lambda x: x.reshape(-1), lambda x: x.reshape(1, -1, 1, 1)),),
    "flax": tuple(_Leaf(f"/{n}", f"/{n}", _same, _same) for n in ("kernel", "bias", "scale")),
}


@dataclasses.dataclass(frozen=True)
class Names:
    """A table that can be looked up by our paths.

    Attributes:
      leaves: our path -> (their name, the conversions).
    """

    leaves: dict[str, tuple[str, _Leaf]]

    @classmethod
    def from_rows(cls, rows: Iterator[Row] | list[Row]) -> "Names":
        """Builds the table from rows; each row becomes one entry per array of its kind."""
        return cls(
            {
                row.ours + leaf.ours: (row.theirs + leaf.theirs, leaf)
                for row in rows
                for leaf in _KINDS[row.kind]
            }
        )

    def their_name(self, path: str) -> str | None:
        """Returns their name for our path, None if they have no such array."""
        return self.leaves[path][0] if path in self.leaves else None

    def to_ours(
        self, arrays: Mapping[str, np.ndarray], paths: Mapping[str, Any]
    ) -> tuple[dict[str, np.ndarray], set[str]]:
        """Converts their arrays to ours.

        Args:
          arrays: their arrays by their names.
          paths: our paths to convert; those that they have no array for are left out.

        Returns:
          our path -> array, floats as float32; the names of their arrays that were used.
        """
        found, used = {}, set()
        for path in paths:
            name = self.their_name(path)
            if name is not None and name in arrays:
                found[path] = _float32(_converted(self._leaf(path), arrays[name]))
                used.add(name)
        return found, used

    def to_theirs(
        self, arrays: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """Converts our arrays to theirs.

        Args:
          arrays: our arrays by path.

        Returns:
          their name -> array; the paths that they have no name for, sorted.
        """
        known = {path for path in arrays if path in self.leaves}
        converted = {
            self.leaves[path][0]: self._leaf(path).to_theirs(np.asarray(arrays[path]))
            for path in known
        }
        return converted, sorted(arrays.keys() - known)

    def _leaf(self, path: str) -> _Leaf:
        return self.leaves[path][1]


def _converted(leaf: _Leaf, array: np.ndarray) -> np.ndarray:
    """Converts their array to our layout.

    An array of the wrong rank is returned unchanged: the later shape check reports it.
    """
    try:
        return leaf.to_ours(array)
    except (ValueError, IndexError):
        return array


def _float32(x: np.ndarray) -> np.ndarray:
    """Converts floats to float32, including bfloat16, which has NumPy's kind "V"."""
    return x.astype(np.float32, copy=False) if x.dtype.kind in "fV" else x


# --- tables ---------------------------------------------------------------------------------------

Model = Mapping[str, Any]  # Fields of config.model.

_RESIDUAL = (("norm1", "norm"), ("conv1", "conv"), ("norm2", "norm"), ("conv2", "conv"))


def residual(theirs: str, ours: str, shortcut: str) -> Iterator[Row]:
    """Yields the layers of a residual block; `shortcut` is their name of its 1x1 convolution."""
    for name, kind in _RESIDUAL:
        yield Row(f"{theirs}.{name}", f"{ours}/{name}", kind)
    yield Row(f"{theirs}.{shortcut}", f"{ours}/shortcut", "conv")


def _ends(norm_out: str) -> Iterator[Row]:
    """Yields the first and last layers of encoder and decoder."""
    for side in ("encoder", "decoder"):
        for name in ("conv_in", "conv_out"):
            yield Row(f"{side}.{name}", f"params/{side}/{name}", "conv")
        yield Row(f"{side}.{norm_out}", f"params/{side}/norm_out", "norm")


class _VQGAN(NamedTuple):
    """A codebase's names for the parts of VQGAN's encoder and decoder.

    Attributes:
      level: module of one resolution. {way} is "down" or "up", {level} the index of the resolution
        from the finest, {run} the index in the order of execution.
      block: list of residual blocks in a level.
      attention: list of attention layers in a level.
      resample: convolution that changes the resolution, with {way} as in `level`.
      middle: the middle's first block, attention and second block.
      shortcut: 1x1 convolution of a residual block whose number of channels changes.
      projections: parts of an attention layer: norm, q, k, v, out.
      projection: kind of q, k, v and out.
      norm_out: last normalisation of encoder and decoder.
    """

    level: str
    block: str
    attention: str
    resample: str
    middle: tuple[str, str, str]
    shortcut: str
    projections: tuple[str, str, str, str, str]
    projection: str
    norm_out: str


_TAMING = _VQGAN(
    level="{way}.{level}",
    block="block",
    attention="attn",
    resample="{way}sample.conv",
    middle=("mid.block_1", "mid.attn_1", "mid.block_2"),
    shortcut="nin_shortcut",
    projections=("norm", "q", "k", "v", "proj_out"),
    projection="conv",
    norm_out="norm_out",
)
_LLAMAGEN = _TAMING._replace(
    level="conv_blocks.{run}", block="res", middle=("mid.0", "mid.1", "mid.2")
)
_DIFFUSERS = _VQGAN(
    level="{way}_blocks.{run}",
    block="resnets",
    attention="attentions",
    resample="{way}samplers.0.conv",
    middle=("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
    shortcut="conv_shortcut",
    projections=("group_norm", "to_q", "to_k", "to_v", "to_out.0"),
    projection="linear_as_conv",
    norm_out="conv_norm_out",
)


def _vqgan(names: _VQGAN, model: Model) -> Iterator[Row]:
    """Yields the rows of the model `vqgan`, without the codebook."""

    def attention(theirs: str, ours: str) -> Iterator[Row]:
        norm, *projections = names.projections
        yield Row(f"{theirs}.{norm}", f"{ours}/norm", "norm")
        for name, path in zip(projections, ("q", "k", "v", "out"), strict=True):
            yield Row(f"{theirs}.{name}", f"{ours}/{path}", names.projection)

    yield from _ends(names.norm_out)
    yield Row("quant_conv", "params/encoder/quant_conv", "conv")
    yield Row("post_quant_conv", "params/decoder/post_quant_conv", "conv")
    levels, blocks = len(model["ch_mult"]), model["num_res_blocks"]
    for side, way, count in (("encoder", "down", blocks), ("decoder", "up", blocks + 1)):
        for level in range(levels):
            run = level if way == "down" else levels - 1 - level
            theirs = f"{side}.{names.level.format(way=way, level=level, run=run)}"
            ours = f"params/{side}/{way}_{level}"
            for b in range(count):
                block = f"{theirs}.{names.block}.{b}"
                yield from residual(block, f"{ours}_block_{b}", names.shortcut)
                yield from attention(f"{theirs}.{names.attention}.{b}", f"{ours}_attn_{b}")
            resample = names.resample.format(way=way)
            yield Row(f"{theirs}.{resample}", f"{ours}_{way}sample/conv", "conv")
        first, middle, second = (f"{side}.{name}" for name in names.middle)
        yield from residual(first, f"params/{side}/mid/block_1", names.shortcut)
        yield from attention(middle, f"params/{side}/mid/attn_1")
        yield from residual(second, f"params/{side}/mid/block_2", names.shortcut)


CODEBOOK = Row("quantize.embedding.weight", "params/quantizer/book/codebook", "array")


def taming(model: Model) -> Iterator[Row]:
    """Yields the rows of taming-transformers' `VQModel`, also used by latent-diffusion and IBQ."""
    yield from _vqgan(_TAMING, model)
    yield CODEBOOK
    # Only `EMAVectorQuantizer` has these.
    for name, ours in (("cluster_size", "cluster_size"), ("embed_avg", "embed_sum")):
        yield Row(f"quantize.embedding.{name}", f"codebook/quantizer/book/{ours}", "first")


def var(model: Model) -> Iterator[Row]:
    """Yields the rows of VAR's `VQVAE`, with the joint convolutions of its attention split."""
    yield from _vqgan(_TAMING, model)
    yield CODEBOOK
    for i in range(16):
        yield Row(f"quantize.quant_resi.qresi_ls.{i}", f"params/quantizer/blends_{i}", "conv")


def taming_gumbel(model: Model) -> Iterator[Row]:
    """Yields the rows of taming-transformers' `GumbelVQ`.

    Its logits come from a 1x1 convolution, which is separate from the codebook.
    """
    yield from _vqgan(_TAMING, model)
    yield Row("quantize.embed.weight", "params/quantizer/book/codebook", "array")
    yield Row("quantize.proj", "params/quantizer/codebook_keys", "conv_as_rows")
    yield Row("quantize.proj.bias", "params/quantizer/codebook_bias", "array")


def llamagen(model: Model) -> Iterator[Row]:
    """Yields the rows of LlamaGen's `VQModel`, whose decoder levels are in execution order."""
    yield from _vqgan(_LLAMAGEN, model)
    yield CODEBOOK


def diffusers(model: Model) -> Iterator[Row]:
    """Yields the rows of diffusers' `VQModel`.

    Its attention uses linear layers, and its decoder levels are in execution order.
    """
    yield from _vqgan(_DIFFUSERS, model)
    yield CODEBOOK


def magvit2(model: Model) -> Iterator[Row]:
    """Yields the rows of Open-MAGVIT2's `VQModel`; its quantizer has no arrays."""
    yield from _ends("norm_out")
    for level in range(len(model["ch_mult"])):
        for side, way in (("encoder", "down"), ("decoder", "up")):
            for b in range(model["num_res_blocks"]):
                theirs, ours = (
                    f"{side}.{way}.{level}.block.{b}",
                    f"params/{side}/{way}_{level}_block_{b}",
                )
                yield from residual(theirs, ours, "nin_shortcut")
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
            yield from residual(f"{side}.mid_block.{b}", ours, "nin_shortcut")


def maskgit(model: Model) -> Iterator[Row]:
    """Yields the rows of MaskGIT's Flax tokenizer, whose layers are numbered in execution order."""
    levels, blocks = len(model["ch_mult"]), model["num_res_blocks"]
    mid = [f"mid_block_{b}" for b in range(blocks)]
    down = [f"down_{level}_block_{b}" for level in range(levels) for b in range(blocks)]
    up = [f"up_{level}_block_{b}" for level in reversed(range(levels)) for b in range(blocks)]
    for side, names in (("encoder", down + mid), ("decoder", mid + up)):
        for i, name in enumerate(names):
            theirs, ours = f"{side}/ResBlock_{i}", f"params/{side}/{name}"
            for their_layer, our_layer in (
                ("GroupNorm_0", "norm1"),
                ("Conv_0", "conv1"),
                ("GroupNorm_1", "norm2"),
                ("Conv_1", "conv2"),
                ("Conv_2", "shortcut"),
            ):
                yield Row(f"{theirs}/{their_layer}", f"{ours}/{our_layer}", "flax")
        yield Row(f"{side}/GroupNorm_0", f"params/{side}/norm_out", "flax")
    convs = ["conv_in", *(f"up_{i}_upsample/conv" for i in range(levels - 1, 0, -1)), "conv_out"]
    for i, name in enumerate(convs):
        yield Row(f"decoder/Conv_{i}", f"params/decoder/{name}", "flax")
    yield Row("encoder/Conv_0", "params/encoder/conv_in", "flax")
    yield Row("encoder/Conv_1", "params/encoder/conv_out", "flax")
    yield Row("quantizer/codebook", "params/quantizer/book/codebook", "array")


def patchgan(n_layers: int) -> Iterator[Row]:
    """Yields the rows of the PatchGAN in taming's and LlamaGen's training checkpoints."""
    yield Row("main.0", "discriminator/conv_0", "conv")
    for i in range(1, n_layers + 1):
        yield Row(f"main.{3 * i - 1}", f"discriminator/conv_{i}", "conv")
        yield Row(f"main.{3 * i}", f"discriminator/norm_{i}", "norm")
    yield Row(f"main.{3 * n_layers + 2}", "discriminator/conv_out", "conv")


def lpips_vgg() -> Iterator[Row]:
    """Yields the rows of LPIPS on VGG16 in taming's training checkpoints.

    They hold torchvision's layers in five slices.
    """
    slices = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
    layers = [(s + 1, n) for s, numbers in enumerate(slices) for n in numbers]
    for j, (s, n) in enumerate(layers):
        yield Row(f"net.slice{s}.{n}.weight", f"lpips/conv_{j}", "kernel")
        yield Row(f"net.slice{s}.{n}.bias", f"lpips/bias_{j}", "array")
    for i in range(5):
        yield Row(f"lin{i}.model.1.weight", f"lpips/linear_{i}", "channels")

"""The codebases whose tokenizers vq_jax reads, and how their arrays' shapes give the config."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vq_jax.errors import UserError
from vq_jax.interop import names, titok
from vq_jax.interop.names import Row
from vq_jax.interop.shapes import FIXED, Arrays, count, entries, shape_of
from vq_jax.interop.var import read_scales


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of tokenizer from another codebase.

    Attributes:
      name: value of the argument `format`.
      signature: regular expression that matches the name of one array, which identifies the family.
        The part of the name before the match is the prefix of all the tokenizer's arrays.
      read: function from the arrays by their names without the prefix, and the content of
        config.json, to the config's sections with the fields that differ from their defaults. It
        raises UserError for an unsupported architecture.
      rows: function from `config.model` to the table of names.
      ignored: regular expression of the names of arrays that no model needs.
      detectable: whether the names of the arrays identify the family. If not, it must be given as
        `format`.
      assumed_fields: fields that only config.json has, not the shapes, with the values assumed
        without it.
    """

    name: str
    signature: str
    read: Callable[[Arrays, dict[str, Any]], dict[str, Any]]
    rows: Callable[[Mapping[str, Any]], Iterator[Row]]
    ignored: str = r"$^"
    detectable: bool = True
    assumed_fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _resolution(config_json: dict[str, Any], levels: int) -> int:
    """Returns the side of the training images, in pixels.

    Args:
      config_json: content of config.json, with the user's value, or None, as `resolution`.
      levels: number of resolutions in the model.

    Returns:
      the user's value, else a usable `sample_size` of config.json, else 256.
    """
    if (resolution := config_json.get("resolution")) is not None:
        divisor = 2 ** (levels - 1)
        if resolution < 1 or resolution % divisor:
            raise UserError(f"resolution is {resolution}: use a positive multiple of {divisor}")
        return resolution
    side = config_json.get("sample_size")
    # diffusers writes 32 if no size was given.
    usable = isinstance(side, int) and side > 32 and side % 2 ** (levels - 1) == 0
    return int(side) if usable and isinstance(side, int) else 256


def _convolutional(
    arrays: Arrays,
    config_json: dict[str, Any],
    *,
    conv1: str,
    blocks: str,
    attention: str | None,
    mid_attention: str,
) -> dict[str, Any]:
    """Returns the sections `model` and `data` for VQGAN's architecture.

    Args:
      arrays, config_json: see `Family.read`.
      conv1: name of the first convolution in an encoder level, with {l} for the level.
      blocks: prefix of the encoder's blocks in level 0, with {} for the block.
      attention: name of an array of the first attention layer in an encoder level, with {l} for the
        level; None if the levels have no attention.
      mid_attention: name of an array of the middle's attention layer.
    """
    ch, channels, *_ = shape_of(arrays, "encoder.conv_in.weight", 4)
    levels = count(arrays, conv1.partition("{l}")[0] + "{}.")
    widths = [shape_of(arrays, conv1.format(l=level), 4)[0] for level in range(levels)]
    mults = tuple(w // ch if w % ch == 0 else w / ch for w in widths)
    resolution = _resolution(config_json, levels)
    attended = [
        level for level in range(levels) if attention and attention.format(l=level) in arrays
    ]
    model = {
        "ch": ch,
        "ch_mult": mults,
        "num_res_blocks": count(arrays, blocks),
        "attn_resolutions": tuple(resolution // 2**level for level in attended),
        "mid_attention": mid_attention in arrays,
        "z_channels": shape_of(arrays, "encoder.conv_out.weight", 4)[0],
    }
    data = {"resolution": resolution, "channels": channels}
    return {"model": {"name": "vqgan"} | model, "data": data}


# taming's loss is 0.25 codebook + commitment = 0.25 (codebook + 4 commitment).
_LEGACY = {"beta": 4.0}
# Open-MAGVIT2 and IBQ use a fixed generator weight and the hinge loss for the discriminator.
_SEED_VOKEN = {
    "loss": "hinge",
    "generator_loss": "non_saturating",
    "weight": 0.1,
    "adaptive_limit": 0.0,
    "lecam_weight": 0.05,
}
_TAMING_LOSS = {"codebook_weight": 0.25, "perceptual_weight": 1.0, "reconstruction": "l1"}


def _taming_body(arrays: Arrays, config_json: dict[str, Any]) -> dict[str, Any]:
    return _convolutional(
        arrays,
        config_json,
        conv1="encoder.down.{l}.block.0.conv1.weight",
        blocks="encoder.down.0.block.{}.",
        attention="encoder.down.{l}.attn.0.q.weight",
        mid_attention="encoder.mid.attn_1.q.weight",
    )


def _read_taming(arrays: Arrays, config_json: dict[str, Any]) -> dict[str, Any]:
    quantizer: dict[str, Any] = {"name": "vq"} | entries(arrays)
    if "quantize.embedding.embed_avg" in arrays:  # EMA codebook with a plain commitment loss.
        quantizer |= {"codebook": "ema", "revive_below": 0.0, "beta": 0.25}
        loss = _TAMING_LOSS | {"codebook_weight": 1.0}
    else:
        quantizer, loss = quantizer | FIXED | _LEGACY, _TAMING_LOSS
    return _taming_body(arrays, config_json) | {"quantizer": quantizer, "loss": loss}


def _read_var(arrays: Arrays, config_json: dict[str, Any]) -> dict[str, Any]:
    found = _taming_body(arrays, config_json)
    kernel = shape_of(arrays, "quant_conv.weight", 4)[2]
    found["model"]["quant_kernel"] = kernel
    side = found["data"]["resolution"] // 2 ** (len(found["model"]["ch_mult"]) - 1)
    quantizer = {"name": "multiscale", "scales": read_scales(config_json, side)} | FIXED
    quantizer["convolutions"] = count(arrays, "quantize.quant_resi.qresi_ls.{}.")
    loss = {"reconstruction": "l2", "perceptual_weight": 1.0}
    return found | {"quantizer": quantizer | entries(arrays), "loss": loss}


def _read_gumbel(arrays: Arrays, config_json: dict[str, Any]) -> dict[str, Any]:
    codebook = entries(arrays, "quantize.embed.weight")
    if shape_of(arrays, "quantize.proj.weight", 4)[:2] != (codebook["num_codes"], codebook["dim"]):
        raise UserError("quantize.proj.weight does not match the shape of quantize.embed.weight")
    quantizer = {"name": "gumbel", "revive_below": 0.0, "kl_weight": 1e-8} | codebook
    return _taming_body(arrays, config_json) | {"quantizer": quantizer}


def _read_ibq(arrays: Arrays, config_json: dict[str, Any]) -> dict[str, Any]:
    quantizer = {"name": "ibq", "revive_below": 0.0} | entries(arrays)
    return _taming_body(arrays, config_json) | {"quantizer": quantizer, "adversarial": _SEED_VOKEN}


def _read_llamagen(arrays: Arrays, config_json: dict[str, Any]) -> dict[str, Any]:
    quantizer = {"name": "vq", "distance": "cosine"} | entries(arrays) | FIXED
    found = _convolutional(
        arrays,
        config_json,
        conv1="encoder.conv_blocks.{l}.res.0.conv1.weight",
        blocks="encoder.conv_blocks.0.res.{}.",
        attention="encoder.conv_blocks.{l}.attn.0.q.weight",
        mid_attention="encoder.mid.1.q.weight",
    )
    loss = {"reconstruction": "l2", "perceptual_weight": 1.0}
    adversarial = {"weight": 0.5, "adaptive_limit": 0.0}
    return found | {"quantizer": quantizer, "loss": loss, "adversarial": adversarial}


def _read_diffusers(arrays: Arrays, config_json: dict[str, Any]) -> dict[str, Any]:
    for field, known in (
        ("norm_type", "group"),
        ("norm_num_groups", 32),
        ("act_fn", "silu"),
    ):
        if config_json.get(field, known) != known:
            raise UserError(
                f"{field} is {config_json[field]!r} in config.json: only {known!r} is supported"
            )
    found = _convolutional(
        arrays,
        config_json,
        conv1="encoder.down_blocks.{l}.resnets.0.conv1.weight",
        blocks="encoder.down_blocks.0.resnets.{}.",
        attention="encoder.down_blocks.{l}.attentions.0.to_q.weight",
        mid_attention="encoder.mid_block.attentions.0.to_q.weight",
    )
    quantizer = {"name": "vq"} | entries(arrays) | FIXED | _LEGACY
    return found | {"quantizer": quantizer, "loss": _TAMING_LOSS}


def _read_magvit2(arrays: Arrays, config_json: dict[str, Any]) -> dict[str, Any]:
    ch, channels, *_ = shape_of(arrays, "encoder.conv_in.weight", 4)
    levels = count(arrays, "encoder.down.{}.")
    widths = [
        shape_of(arrays, f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in range(levels)
    ]
    model = {
        "name": "magvit2",
        "ch": ch,
        "ch_mult": tuple(width // ch for width in widths),
        "num_res_blocks": count(arrays, "encoder.down.0.block.{}."),
    }
    bits = shape_of(arrays, "encoder.conv_out.weight", 4)[0]
    resolution = _resolution(config_json, levels)
    return {
        "model": model,
        "quantizer": {"name": "lfq", "bits": bits},
        "data": {"resolution": resolution, "channels": channels},
        "adversarial": _SEED_VOKEN | ({"lecam_weight": 0.01} if resolution == 128 else {}),
    }


def _read_maskgit(arrays: Arrays, config_json: dict[str, Any]) -> dict[str, Any]:
    _, _, channels, ch = shape_of(arrays, "encoder/Conv_0/kernel", 4)
    levels = count(arrays, "decoder/Conv_{}/") - 1
    total = count(arrays, "encoder/ResBlock_{}/")
    if levels < 1 or total % (levels + 1):
        raise UserError(
            f"{total} encoder blocks cannot be divided among {levels} levels and the middle"
        )
    blocks = total // (levels + 1)
    firsts = [f"encoder/ResBlock_{level * blocks}/Conv_0/kernel" for level in range(levels)]
    model = {
        "name": "maskgit",
        "ch": ch,
        "ch_mult": tuple(shape_of(arrays, name, 4)[-1] // ch for name in firsts),
        "num_res_blocks": blocks,
    }
    quantizer = {"name": "vq"} | entries(arrays, "quantizer/codebook") | FIXED
    quantizer |= {"entropy_weight": 0.1, "temperature": 0.01}
    return {
        "model": model,
        "quantizer": quantizer,
        "data": {"resolution": _resolution(config_json, levels), "channels": channels},
        "loss": {"reconstruction": "l2", "perceptual_weight": 0.1},
        "adversarial": {"loss": "non_saturating", "weight": 0.1, "adaptive_limit": 0.0},
    }


_TAMING = r"encoder\.down\.0\.block\.0\.norm1\.weight$"
_IGNORED = r"quantize\.(codebook_used|ema_vocab_hit_SV|mask|zero|codebook|pre_mask|post_mask)$"
FAMILIES = {
    family.name: family
    for family in (
        Family(
            "magvit2",
            r"decoder\.adaptive\.0\.gamma\.weight$",
            _read_magvit2,
            names.magvit2,
            _IGNORED,
        ),
        Family(
            "taming_gumbel",
            r"quantize\.embed\.weight$",
            _read_gumbel,
            names.taming_gumbel,
            _IGNORED,
        ),
        Family(
            "var",
            r"quantize\.quant_resi\.qresi_ls\.0\.weight$",
            _read_var,
            names.var,
            _IGNORED,
        ),
        Family("taming", _TAMING, _read_taming, names.taming, _IGNORED),
        # IBQ has the same names as taming.
        Family("ibq", _TAMING, _read_ibq, names.taming, _IGNORED, detectable=False),
        Family(
            "llamagen",
            r"encoder\.conv_blocks\.0\.res\.0\.norm1\.weight$",
            _read_llamagen,
            names.llamagen,
            _IGNORED,
        ),
        Family(
            "diffusers",
            r"encoder\.down_blocks\.0\.resnets\.0\.norm1\.weight$",
            _read_diffusers,
            names.diffusers,
            assumed_fields={"norm_num_groups": 32},
        ),
        Family(
            "titok",
            r"encoder\.latent_token_positional_embedding$",
            titok.read,
            titok.rows,
        ),
        Family("maskgit", r"encoder/ResBlock_0/Conv_0/kernel$", _read_maskgit, names.maskgit),
    )
}

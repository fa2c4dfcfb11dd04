"""Reads TiTok's tokenizer (Yu et al. 2024, bytedance/1d-tokenizer), and names its arrays."""

import math
from collections.abc import Iterator
from typing import Any

from vq_jax.errors import UserError
from vq_jax.interop.names import CODEBOOK, Model, Row, residual
from vq_jax.interop.shapes import FIXED, Arrays, count, entries, shape_of


def rows(model: Model) -> Iterator[Row]:
    """Yields the rows of TiTok's tokenizer, with the decoder of MaskGIT's if it is two-stage."""
    ours = "params/encoder"
    yield Row("latent_tokens", f"{ours}/latent_tokens", "array")
    yield Row("encoder.patch_embed", f"{ours}/patches", "patches")
    yield Row("encoder.conv_out", f"{ours}/to_latent", "conv_as_linear")
    yield CODEBOOK
    yield Row("decoder.decoder_embed", "params/decoder/from_latent", "linear")
    # [1, 1, W] to [W]
    yield Row("decoder.mask_token", "params/decoder/mask_token", "last_axis")
    depths = (model["layers"], model["decoder_layers"] or model["layers"])
    for side, layers in zip(("encoder", "decoder"), depths, strict=True):
        ours = f"params/{side}"
        yield Row(f"{side}.class_embedding", f"{ours}/class_embedding", "array")
        yield Row(f"{side}.positional_embedding", f"{ours}/places", "array")
        theirs = f"{side}.latent_token_positional_embedding"
        yield Row(theirs, f"{ours}/latent_places", "array")
        yield Row(f"{side}.ln_pre", f"{ours}/sequence/norm_in", "norm")
        yield Row(f"{side}.ln_post", f"{ours}/sequence/norm_out", "norm")
        for i in range(layers):
            theirs, block = f"{side}.transformer.{i}", f"{ours}/sequence/block_{i}"
            yield Row(f"{theirs}.ln_1", f"{block}/norm_attention", "norm")
            yield Row(f"{theirs}.attn.in_proj_weight", f"{block}/qkv/kernel", "transposed")
            yield Row(f"{theirs}.attn.in_proj_bias", f"{block}/qkv/bias", "array")
            yield Row(f"{theirs}.attn.out_proj", f"{block}/out", "linear")
            yield Row(f"{theirs}.ln_2", f"{block}/norm_feed_forward", "norm")
            yield Row(f"{theirs}.mlp.c_fc", f"{block}/up", "linear")
            yield Row(f"{theirs}.mlp.c_proj", f"{block}/down", "linear")
    if not model["pixel_codes"]:
        yield Row("decoder.ffn.0", "params/decoder/pixels", "conv_as_linear")
        yield Row("decoder.conv_out", "params/decoder/conv_out", "conv")
        return
    yield Row("decoder.ffn.0", "params/decoder/logits_hidden", "conv_as_linear")
    yield Row("decoder.ffn.2", "params/decoder/logits_out", "conv_as_linear")
    ours = "params/decoder/pixel_decoder"
    yield Row("pixel_quantize.embedding.weight", "params/decoder/pixel_codebook", "array")
    for name, kind in (("conv_in", "conv"), ("norm_out", "norm"), ("conv_out", "conv")):
        yield Row(f"pixel_decoder.{name}", f"{ours}/{name}", kind)
    for b in range(model["pixel_blocks"]):
        yield from residual(f"pixel_decoder.mid.{b}", f"{ours}/mid_block_{b}", "nin_shortcut")
        for level in range(len(model["pixel_ch_mult"])):
            theirs = f"pixel_decoder.up.{level}"
            yield from residual(
                f"{theirs}.block.{b}", f"{ours}/up_{level}_block_{b}", "nin_shortcut"
            )
            yield Row(f"{theirs}.upsample_conv", f"{ours}/up_{level}_upsample/conv", "conv")


def read(arrays: Arrays, config_json: dict[str, Any]) -> dict[str, Any]:
    """Derives the config's sections from TiTok's arrays; see `Family.read`."""
    width, channels, patch, _ = shape_of(arrays, "encoder.patch_embed.weight", 4)
    decoder_width = shape_of(arrays, "decoder.decoder_embed.weight", 2)[0]
    # The first released weights predict codes, and have another order of the encoder's output.
    legacy = "decoder.ffn.2.weight" in arrays
    places = shape_of(arrays, "encoder.positional_embedding", 2)[0]
    model = {
        "name": "titok",
        "patch": patch,
        "tokens": shape_of(arrays, "latent_tokens", 2)[0],
        "layers": count(arrays, "encoder.transformer.{}."),
        "width": width,
        "heads": width // 64,
        "decoder_layers": count(arrays, "decoder.transformer.{}."),
        "decoder_width": decoder_width,
        "decoder_heads": decoder_width // 64,
        "legacy": legacy,
    }
    if legacy:
        if "pixel_decoder.conv_in.weight" not in arrays:
            raise UserError(
                "there is no pixel_decoder: the weights are those of TiTok's first stage, give those of the "
                "second"
            )
        levels = count(arrays, "pixel_decoder.up.{}.")
        names_of_widths = [f"pixel_decoder.up.{i}.block.0.conv1.weight" for i in range(levels)]
        widths = [shape_of(arrays, name, 4)[0] for name in names_of_widths]
        codes, pixel_dim = shape_of(arrays, "pixel_quantize.embedding.weight", 2)
        model |= {
            "pixel_codes": codes,
            "pixel_dim": pixel_dim,
            "pixel_ch": widths[0],
            "pixel_ch_mult": tuple(w // widths[0] for w in widths),
            "pixel_blocks": count(arrays, "pixel_decoder.mid.{}."),
        }
    described: Any = config_json
    for section in ("model", "vq_model"):
        described = described.get(section) if isinstance(described, dict) else None
    unit = described.get("use_l2_norm", legacy) if isinstance(described, dict) else legacy
    quantizer = {"name": "vq", "distance": "cosine" if unit else "l2"} | entries(arrays) | FIXED
    side = patch * math.isqrt(places - 1)
    if (given := config_json.get("resolution")) not in (None, side):
        raise UserError(f"resolution is {given}: the model is for images of {side}x{side} only")
    data = {"resolution": side, "channels": channels}
    return {"model": model, "quantizer": quantizer, "data": data}

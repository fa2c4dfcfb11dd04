"""Converts a VQGAN tokenizer to the state dict and config of diffusers, taming-transformers or VAR.

Configs are read here, but not loaded or checked: `config` is a tokenizer's complete config.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vq_jax.errors import UserError
from vq_jax.interop import names, titok, var
from vq_jax.interop.extras import CARRIED
from vq_jax.interop.names import Names
from vq_jax.interop.weights import flat_numpy
from vq_jax.models.vqgan import attention_levels
from vq_jax.quantizers.functions import normalise

# Fields of diffusers' config.json that the arrays do not give, with diffusers' defaults.
_DIFFUSERS_FIELDS = {
    "force_upcast": False,
    "lookup_from_codebook": False,
    "scaling_factor": 0.18215,
}
# Prefixes of the arrays of taming's `VQLPIPSWithDiscriminator` in a state dict.
_LOSS_PARTS = ("loss.discriminator.", "loss.perceptual_loss.")
# Quantizers that a format has.
_QUANTIZERS = {"taming": ("vq", "gumbel"), "diffusers": ("vq",), "var": ("multiscale",)}


def to_diffusers(
    config: ConfigDict, variables: dict[str, Any], num_codes: int, origin: dict[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Converts a tokenizer to diffusers' `VQModel`.

    Args:
      config: the tokenizer's config.
      variables: the tokenizer's variables.
      num_codes: number of codebook entries.
      origin: content of the config.json that the tokenizer was imported with, {} if there is none.

    Returns:
      the state dict; the content of config.json.

    Raises:
      UserError: diffusers' `VQModel` does not support the tokenizer.
    """
    arrays = _state_dict(config, variables, names.diffusers, "diffusers")
    model = config.model.to_dict()
    attended = _attention_levels(config)
    levels = range(len(model["ch_mult"]))
    down = ["AttnDownEncoderBlock2D" if i in attended else "DownEncoderBlock2D" for i in levels]
    up = ["AttnUpDecoderBlock2D" if i in attended else "UpDecoderBlock2D" for i in levels]
    config_json = {
        "_class_name": "VQModel",
        "_diffusers_version": "0.35.0",
        "act_fn": "silu",
        "block_out_channels": [round(model["ch"] * mult) for mult in model["ch_mult"]],
        "down_block_types": down,
        "in_channels": config.data.channels,
        "latent_channels": model["z_channels"],
        "layers_per_block": model["num_res_blocks"],
        "mid_block_add_attention": model["mid_attention"],
        "norm_num_groups": 32,
        "norm_type": "group",
        "num_vq_embeddings": num_codes,
        "out_channels": config.data.channels,
        "sample_size": config.data.resolution,
        "up_block_types": up[::-1],
        "vq_embed_dim": config.quantizer.dim,
    }
    config_json |= {name: origin.get(name, value) for name, value in _DIFFUSERS_FIELDS.items()}
    return arrays, config_json


def to_taming(
    config: ConfigDict, variables: dict[str, Any], num_codes: int, extra: dict[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any], np.ndarray | None]:
    """Converts a tokenizer to taming's `VQModel`, `EMAVQ` or `GumbelVQ`.

    Args:
      config: the tokenizer's config.
      variables: the tokenizer's variables.
      num_codes: number of codebook entries.
      extra: arrays that came with an imported tokenizer, from `extras.read_extra_arrays`.

    Returns:
      the state dict; the content of the yaml; the content of the remap's file used.npy, int [K],
      None if the tokenizer has no remap.

    Raises:
      UserError: taming's models do not support the tokenizer.
    """
    gumbel = config.quantizer.name == "gumbel"
    table = names.taming_gumbel if gumbel else names.taming
    arrays = _state_dict(config, variables, table, "taming")
    model = config.model.to_dict()
    if gumbel and config.quantizer.dim != model["z_channels"]:
        raise _unsupported("taming", "its GumbelVQ needs quantizer.dim equal to model.z_channels")
    if any(mult != int(mult) for mult in model["ch_mult"]):
        raise _unsupported("taming", "it needs whole numbers in model.ch_mult")
    side = config.data.resolution
    averaged = config.quantizer.get("codebook") == "ema"
    kind = "GumbelVQ" if gumbel else "EMAVQ" if averaged else "VQModel"
    params: dict[str, Any] = {
        "embed_dim": config.quantizer.dim,
        "n_embed": num_codes,
        "ddconfig": {
            "double_z": False,
            "z_channels": model["z_channels"],
            "resolution": side,
            "in_channels": config.data.channels,
            "out_ch": config.data.channels,
            "ch": model["ch"],
            "ch_mult": list(model["ch_mult"]),
            "num_res_blocks": model["num_res_blocks"],
            "attn_resolutions": [side // 2**level for level in _attention_levels(config)],
            "dropout": 0.0,
        },
        "lossconfig": {"target": "taming.modules.losses.DummyLoss"},
    }
    if gumbel:
        params["temperature_scheduler_config"] = {
            "target": "taming.lr_scheduler.LambdaWarmUpCosineScheduler",
            "params": {
                "warm_up_steps": 0, "max_decay_steps": 1_000_001, "lr_start": 0.9, "lr_max": 0.9,
                "lr_min": 1.0e-06,
            },
        }  # fmt: skip
    if not model["mid_attention"]:
        raise UserError(
            "format 'taming' does not support this tokenizer: it needs model.mid_attention; use "
            "format 'diffusers'"
        )
    carried = extra.get(CARRIED, {})
    if "colorize" in carried:
        params["colorize_nlabels"] = carried["colorize"].shape[1]
    if (used := carried.get("quantize.used")) is not None:
        for name in carried.keys() & arrays.keys():
            # The whole codebook, with the current values of the entries that the remap uses.
            whole = np.array(carried[name])
            whole[used] = arrays[name]
            arrays[name] = whole
        entries = "quantize.embed.weight" if gumbel else "quantize.embedding.weight"
        params |= {"remap": "used.npy", "n_embed": len(arrays[entries])}
    arrays = carried | arrays
    arrays |= loss_state_dict(flat_numpy(extra), config.discriminator.n_layers)
    if all(any(name.startswith(part) for name in arrays) for part in _LOSS_PARTS):
        params["lossconfig"] = _lossconfig(config)
    config_yaml = {"model": {"target": f"taming.models.vqgan.{kind}", "params": params}}
    return arrays, config_yaml, used


def to_var(config: ConfigDict, variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """Converts a tokenizer to VAR's `VQVAE`.

    Args:
      config: the tokenizer's config.
      variables: the tokenizer's variables.

    Returns:
      the state dict.

    Raises:
      UserError: VAR's model does not support the tokenizer.
    """
    quantizer = config.quantizer
    if quantizer.name == "multiscale" and (
        quantizer.convolution_share != 0.5
        or quantizer.convolutions < 2
        or quantizer.distance != "l2"
    ):
        raise _unsupported(
            "var", "it has two convolutions or more of half the weight, and the L2 distance"
        )
    arrays = var.join_qkv(_state_dict(config, variables, names.var, "var"))
    hits = (len(config.quantizer.scales), config.quantizer.num_codes)
    return arrays | {"quantize.ema_vocab_hit_SV": np.zeros(hits, np.float32)}


def to_titok(config: ConfigDict, variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """Converts a tokenizer to TiTok's state dict.

    Args:
      config: the tokenizer's config.
      variables: the tokenizer's variables.

    Raises:
      UserError: TiTok's model does not support the tokenizer.
    """
    model, quantizer = config.model, config.quantizer
    plain = quantizer.name == "vq" and quantizer.heads == 1 and not quantizer.code_dim
    if model.name != "titok" or not plain or quantizer.codebook == "mapped":
        raise _unsupported(
            "titok", "it has the model 'titok' and the quantizer 'vq' with one plain codebook"
        )
    if config.data.channels != 3:
        raise _unsupported("titok", "its images have three channels")
    widths = (model.width, model.decoder_width or model.width)
    heads = (model.heads, model.decoder_heads or model.heads)
    if any(width != 64 * count for width, count in zip(widths, heads, strict=True)):
        raise _unsupported("titok", "it has heads of 64 dimensions")
    if model.hidden not in (0, 4 * model.width) or model.legacy != bool(model.pixel_codes):
        raise _unsupported("titok", "it has other layers")
    arrays, unknown = Names.from_rows(titok.rows(model)).to_theirs(
        flat_numpy({"params": variables["params"]})
    )
    if unknown:
        raise UserError(f"format 'titok' has no names for {', '.join(unknown)}")
    return arrays


def titok_config(config: ConfigDict) -> dict[str, Any]:
    """Returns the content of TiTok's config.json; a size that TiTok has no name for is None."""
    model, quantizer = config.model, config.quantizer
    named = {(8, 512): "small", (12, 768): "base", (24, 1024): "large"}
    decoder = (model.decoder_layers or model.layers, model.decoder_width or model.width)
    described = {
        "codebook_size": quantizer.num_codes,
        "token_size": quantizer.dim,
        "use_l2_norm": quantizer.distance == "cosine",
        "commitment_cost": quantizer.beta,
        "vit_enc_model_size": named.get((model.layers, model.width)),
        "vit_dec_model_size": named.get(decoder),
        "vit_enc_patch_size": model.patch,
        "vit_dec_patch_size": model.patch,
        "num_latent_tokens": model.tokens,
        "finetune_decoder": bool(model.pixel_codes),
        "is_legacy": model.legacy,
    }
    crop = {"preprocessing": {"crop_size": config.data.resolution}}
    return {"model": {"vq_model": described}, "dataset": crop}


def loss_state_dict(arrays: dict[str, np.ndarray], n_layers: int) -> dict[str, np.ndarray]:
    """Converts discriminator and LPIPS to the names in taming's training checkpoints.

    Args:
      arrays: our arrays by path; those of other groups are ignored.
      n_layers: the discriminator's `n_layers`.
    """
    state_dict: dict[str, np.ndarray] = {}
    for prefix, rows in (
        ("loss.discriminator", names.patchgan(n_layers)),
        ("loss.perceptual_loss", names.lpips_vgg()),
    ):
        converted, _ = Names.from_rows(rows).to_theirs(arrays)
        state_dict |= {f"{prefix}.{name}": array for name, array in converted.items()}
    return state_dict


def _unsupported(format: str, reason: str) -> UserError:
    return UserError(
        f"format {format!r} does not support this tokenizer: {reason}; use format 'vq_jax' or "
        "'stablehlo'"
    )


def _state_dict(
    config: ConfigDict, variables: dict[str, Any], table: Callable, format: str
) -> dict[str, np.ndarray]:
    """Converts a VQGAN's arrays by a table of names.

    Raises:
      UserError: the format does not support the tokenizer.
    """
    quantizer = config.quantizer
    reason = None
    if config.model.name != "vqgan":
        reason = f"it has no model like model.name={config.model.name!r}, only 'vqgan'"
    elif quantizer.name not in _QUANTIZERS[format]:
        reason = f"it has no quantizer like quantizer.name={quantizer.name!r}"
    elif quantizer.name == "vq" and (quantizer.heads > 1 or quantizer.code_dim):
        reason = "it supports neither several quantizer.heads nor a quantizer.code_dim"
    elif config.model.quant_kernel != (3 if format == "var" else 1):
        reason = f"it has no convolutions like model.quant_kernel={config.model.quant_kernel}"
    elif any(round(config.model.ch * mult) % 32 for mult in config.model.ch_mult):
        reason = "its GroupNorms need multiples of 32 as model.ch times model.ch_mult"
    if reason:
        raise _unsupported(format, reason)
    trees = {"params": variables["params"]}
    if format == "taming" and quantizer.get("codebook") == "ema":
        trees["codebook"] = variables["codebook"]
    params = flat_numpy(trees)
    if quantizer.name == "vq" and quantizer.distance == "cosine":
        # Both formats use the L2 distance. With entries of length 1 it gives the same codes.
        path = "params/quantizer/book/codebook"
        params[path] = np.asarray(normalise(jnp.asarray(params[path])))
    arrays, unknown = Names.from_rows(table(config.model)).to_theirs(params)
    if unknown:
        raise UserError(f"format {format!r} has no names for {', '.join(unknown)}")
    return arrays


def _attention_levels(config: ConfigDict) -> tuple[int, ...]:
    model = config.model
    return attention_levels(config.data.resolution, len(model.ch_mult), model.attn_resolutions)


def _lossconfig(config: ConfigDict) -> dict[str, Any]:
    """Returns taming's `lossconfig` for a state dict with discriminator and LPIPS."""
    return {
        "target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator",
        "params": {
            "disc_conditional": False,
            "disc_in_channels": config.data.channels,
            "disc_ndf": config.discriminator.ndf,
            "disc_num_layers": config.discriminator.n_layers,
            "disc_start": 0,
            "disc_weight": config.adversarial.weight,
            "codebook_weight": 1.0,
            "perceptual_weight": config.loss.perceptual_weight,
        },
    }

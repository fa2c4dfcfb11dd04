"""Hands a trained model on: to diffusers, to taming, to us, or as programs that need none of these."""

import contextlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import yaml
from ml_collections import ConfigDict

from vq_jax import config as configs
from vq_jax.codec import read_counts, save_counts
from vq_jax.errors import UserError, first_line
from vq_jax.files import unfinished
from vq_jax.interop import names
from vq_jax.interop.names import Names
from vq_jax.interop.weights import (
    ARRAYS,
    CONFIG,
    flat,
    read_group,
    save_arrays,
)
from vq_jax.models.convolution import plain
from vq_jax.models.vqgan import attention_levels
from vq_jax.prior import TrainedPrior, load
from vq_jax.quantizers.functions import normalise
from vq_jax.tokenizer import TrainedTokenizer, in_one_file

# What else came with an imported tokenizer, under the names it had there.
CARRIED = "carried"
# The config.json that came with it.
_ORIGIN = "origin.json"
# Its fields that no array tells, with what diffusers takes where they are not there.
_DIFFUSERS_FIELDS = {
    "force_upcast": False,
    "lookup_from_codebook": False,
    "scaling_factor": 0.18215,
}
# Groups of arrays that came with an imported tokenizer, beside its own.
_BESIDE = ("discriminator", "lpips", CARRIED)


def export(workdir: Path, output: Path, format: str) -> None:
    """`--mode=export`: writes a trained model into a folder, in a form that others open.

    Args:
      workdir: the run's folder.
      output: the folder to write; it must not exist, or be empty.
      format: one of `FORMATS`.

    Raises:
      UserError: the format has no form for this model, or the folder cannot be written.
    """
    if format not in FORMATS:
        raise UserError(f"--format={format}: use one of {', '.join(FORMATS)}")
    check_new(output)
    model = load(workdir)
    if isinstance(model, TrainedPrior) and format != "vq_jax":
        raise UserError(f"{workdir} holds a prior: it can be exported with --format=vq_jax only")
    with new_folder(output) as temporary:
        FORMATS[format](model, workdir, temporary)
    files = ", ".join(
        f"{p.name} ({p.stat().st_size / 1e6:,.1f} MB)" for p in sorted(output.iterdir())
    )
    print(f"exported {workdir} to {output}: {files}")


def check_new(folder: Path) -> None:
    """Raises UserError unless a folder can be written: it must not exist, or be empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already: name a new folder")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes a folder's name once all in it is written.

    Raises:
      UserError: the folder is there already, or cannot be written.
    """
    check_new(folder)
    with unfinished(folder) as temporary:
        try:
            temporary.mkdir(parents=True)
            yield temporary
            if folder.exists():
                folder.rmdir()
            temporary.replace(folder)
        except OSError as e:
            raise UserError(f"cannot write {folder}: {e.strerror or e}") from e


# --- our own form ---------------------------------------------------------------------------------


def own_arrays(
    model: TrainedTokenizer | TrainedPrior, folder: Path
) -> tuple[ConfigDict, dict[str, np.ndarray], int]:
    """A model in our own form.

    Args:
      model: opened.
      folder: the one it was opened from; what came along with an imported tokenizer is there.

    Returns:
      its config; name -> array; the steps its params have seen.
    """
    if isinstance(model, TrainedPrior):
        config = model.config.copy_and_resolve_references()
        with config.unlocked():
            config.prior.scan = False  # a tree for each layer, as it was opened
        fingerprint = np.frombuffer(model.tokenizer.fingerprint, np.uint8)
        return config, _numpy({"params": model.params, "fingerprint": fingerprint}), model.step
    trees: dict[str, Any] = dict(model.variables)
    trees |= _beside(folder)
    return model.config, _numpy(trees), model.step


def _beside(folder: Path) -> dict[str, Any]:
    """What came along with an imported tokenizer, as long as it has been trained no further."""
    if not in_one_file(folder):
        return {}
    return {group: found for group in _BESIDE if (found := read_group(folder, group))}


def _numpy(trees: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in flat(trees).items()}


def _save_json(content: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _vq_jax(model: TrainedTokenizer | TrainedPrior, workdir: Path, output: Path) -> None:
    config, arrays, step = own_arrays(model, workdir)
    save_arrays(arrays, output / ARRAYS, step=str(step))
    configs.save(config, output / CONFIG)
    hand_on(model, workdir, output)


def save_origin(about: dict[str, Any], folder: Path) -> None:
    """Keeps the config.json that came with an imported tokenizer."""
    _save_json(about, folder / _ORIGIN)


def _origin(folder: Path) -> dict[str, Any]:
    """What `save_origin` kept, or {}."""
    try:
        return json.loads((folder / _ORIGIN).read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise UserError(f"{folder / _ORIGIN} cannot be read: {first_line(e)}") from e


def hand_on(model: TrainedTokenizer | TrainedPrior, folder: Path, to: Path) -> None:
    """Gives a folder what lies beside a model's arrays: the counts that files are coded by, and the
    config.json that it was imported with."""
    if about := _origin(folder):
        save_origin(about, to)
    if isinstance(model, TrainedTokenizer) and (counts := read_counts(folder, model)) is not None:
        save_counts(to, model, counts)


# --- PyTorch --------------------------------------------------------------------------------------


def _torch_arrays(
    tokenizer: TrainedTokenizer, table: Callable, kind: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A VQGAN's params under another codebase's names, and the fields of its model."""
    config = tokenizer.config
    quantizer = config.quantizer
    why = None
    if config.model.name != "vqgan":
        why = f"it has no model like model.name={config.model.name!r}, only 'vqgan'"
    elif quantizer.name not in (("vq", "gumbel") if kind == "taming" else ("vq",)):
        why = f"it has no quantizer like quantizer.name={quantizer.name!r}"
    elif quantizer.name == "vq" and (quantizer.heads > 1 or quantizer.code_dim):
        why = "its quantizer has no heads and no projection (quantizer.heads, quantizer.code_dim)"
    elif any(round(config.model.ch * mult) % 32 for mult in config.model.ch_mult):
        why = "its GroupNorms have 32 groups, and model.ch times model.ch_mult is no multiple of 32"
    if why:
        raise UserError(
            f"--format={kind} cannot hold this tokenizer: {why}; vq_jax and stablehlo hold any"
        )
    trees = {"params": tokenizer.variables["params"]}
    if kind == "taming" and quantizer.get("codebook") == "ema":
        trees["codebook"] = tokenizer.variables["codebook"]
    params = _numpy(trees)
    if quantizer.name == "vq" and quantizer.distance == "cosine":
        # Of entries of length 1 the nearest is the one at the least angle: the same codes.
        place = "params/quantizer/book/codebook"
        params[place] = np.asarray(normalise(jnp.asarray(params[place])))
    arrays, unknown = Names.of(table(config.model)).give(params)
    if unknown:
        raise UserError(f"--format={kind} has no names for {', '.join(unknown)}")
    return arrays, config.model.to_dict()


def _attention_levels(config: ConfigDict) -> tuple[int, ...]:
    model = config.model
    return attention_levels(config.data.resolution, len(model.ch_mult), model.attn_resolutions)


def _diffusers(tokenizer: TrainedTokenizer, workdir: Path, output: Path) -> None:
    arrays, model = _torch_arrays(tokenizer, names.diffusers, "diffusers")
    config = tokenizer.config
    attended = _attention_levels(config)
    levels = range(len(model["ch_mult"]))
    down = ["AttnDownEncoderBlock2D" if i in attended else "DownEncoderBlock2D" for i in levels]
    up = ["AttnUpDecoderBlock2D" if i in attended else "UpDecoderBlock2D" for i in levels]
    about = {
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
        "num_vq_embeddings": tokenizer.num_codes,
        "out_channels": config.data.channels,
        "sample_size": config.data.resolution,
        "up_block_types": up[::-1],
        "vq_embed_dim": config.quantizer.dim,
    }
    origin = _origin(workdir)
    about |= {name: origin.get(name, value) for name, value in _DIFFUSERS_FIELDS.items()}
    save_arrays(arrays, output / "diffusion_pytorch_model.safetensors")
    _save_json(about, output / CONFIG)


def _taming(tokenizer: TrainedTokenizer, workdir: Path, output: Path) -> None:
    config = tokenizer.config
    gumbel = config.quantizer.name == "gumbel"
    table = names.taming_gumbel if gumbel else names.taming
    arrays, model = _torch_arrays(tokenizer, table, "taming")
    if gumbel and config.quantizer.dim != model["z_channels"]:
        raise UserError("--format=taming: its GumbelVQ has quantizer.dim equal to model.z_channels")
    if any(mult != int(mult) for mult in model["ch_mult"]):
        raise UserError(
            "--format=taming: its levels are whole multiples of the first (model.ch_mult)"
        )
    side = config.data.resolution
    averaged = config.quantizer.get("codebook") == "ema"
    kind = "GumbelVQ" if gumbel else "EMAVQ" if averaged else "VQModel"
    about: dict[str, Any] = {
        "model": {
            "target": f"taming.models.vqgan.{kind}",
            "params": {
                "embed_dim": config.quantizer.dim,
                "n_embed": tokenizer.num_codes,
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
            },
        }
    }
    if gumbel:
        about["model"]["params"]["temperature_scheduler_config"] = {
            "target": "taming.lr_scheduler.LambdaWarmUpCosineScheduler",
            "params": {
                "warm_up_steps": 0, "max_decay_steps": 1_000_001, "lr_start": 0.9, "lr_max": 0.9,
                "lr_min": 1.0e-06,
            },
        }  # fmt: skip
    if not model["mid_attention"]:
        raise UserError(
            "--format=taming cannot hold this tokenizer: its middle always has attention "
            "(model.mid_attention); diffusers can do without"
        )
    beside = _beside(workdir)
    carried = beside.get(CARRIED, {})
    params = about["model"]["params"]
    if "colorize" in carried:
        params["colorize_nlabels"] = carried["colorize"].shape[1]
    if (used := carried.get("quantize.used")) is not None:
        for name in carried.keys() & arrays.keys():  # the whole codebook, with what it has become
            whole = np.array(carried[name])
            whole[used] = arrays[name]
            arrays[name] = whole
        params |= {"remap": "used.npy", "n_embed": len(arrays[_entries_of(gumbel)])}
        np.save(output / "used.npy", used)
    arrays = carried | arrays
    arrays |= names_in_training(_numpy(beside), config.discriminator.n_layers)
    if all(any(name.startswith(part) for name in arrays) for part in _LOSS_PARTS):
        params["lossconfig"] = _lossconfig(config)
    save_arrays(arrays, output / ARRAYS)
    (output / "config.yaml").write_text(yaml.safe_dump(about, sort_keys=False))


# What a state dict has of taming's `VQLPIPSWithDiscriminator`.
_LOSS_PARTS = ("loss.discriminator.", "loss.perceptual_loss.")


def _entries_of(gumbel: bool) -> str:
    return "quantize.embed.weight" if gumbel else "quantize.embedding.weight"


def _lossconfig(config: ConfigDict) -> dict[str, Any]:
    """The loss whose arrays a training file holds, for a yaml of taming's."""
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


def names_in_training(arrays: dict[str, np.ndarray], n_layers: int) -> dict[str, np.ndarray]:
    """The discriminator and LPIPS among arrays of ours, as taming's training files call them."""
    given: dict[str, np.ndarray] = {}
    for prefix, rows in (
        ("loss.discriminator", names.patchgan(n_layers)),
        ("loss.perceptual_loss", names.lpips_vgg()),
    ):
        found, _ = Names.of(rows).give(arrays)
        given |= {f"{prefix}.{name}": array for name, array in found.items()}
    return given


# --- StableHLO ------------------------------------------------------------------------------------


def _stablehlo(tokenizer: TrainedTokenizer, workdir: Path, output: Path) -> None:
    """Encoder and decoder as programs with the weights in them, for any number of images."""
    if not importlib.util.find_spec("flatbuffers"):
        raise UserError("--format=stablehlo needs flatbuffers: pip install 'vq_jax[export]'")
    module, variables = tokenizer.module, tokenizer.variables

    def encode(images):
        def one(image):  # of one image, so that how the search is cut up is settled now
            z = module.apply(variables, image[None], method="encode")
            quantized: Any = module.apply(variables, z, method="quantize")
            return quantized[1][0]

        return jax.vmap(one)(images)

    def decode(codes):
        z_q = module.apply(variables, codes, method="lookup")
        return module.apply(variables, z_q, method="decode_latents")

    (batch,) = jax.export.symbolic_shape("batch")
    image = configs.image_shape(tokenizer.config)
    for name, function, shape, dtype in (
        ("encode", encode, image, jnp.float32),
        ("decode", decode, tokenizer.grid, jnp.int32),
    ):
        wanted = jax.ShapeDtypeStruct((batch, *shape), dtype)
        with plain():
            program = jax.export.export(jax.jit(function), platforms=("cpu", "cuda", "tpu"))(wanted)
        (output / f"{name}.stablehlo").write_bytes(bytes(program.serialize()))
    about = {
        "encode": f"float32 [batch, {', '.join(map(str, image))}] in [-1, 1] to int32 codes",
        "decode": f"int32 [batch, {', '.join(map(str, tokenizer.grid))}] to float32 images",
        "num_codes": tokenizer.num_codes,
        "use": "jax.export.deserialize(bytearray(open('encode.stablehlo', 'rb').read())).call(images)",
    }
    _save_json(about, output / CONFIG)


# name -> function that writes a model, opened from a run's folder, into an empty folder
FORMATS: dict[str, Callable[..., None]] = {
    "diffusers": _diffusers,
    "taming": _taming,
    "vq_jax": _vq_jax,
    "stablehlo": _stablehlo,
}

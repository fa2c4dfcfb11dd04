"""Exports a trained model to diffusers, taming, VAR, TiTok, vq_jax's own format, or StableHLO."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import yaml

from vq_jax import config as configs
from vq_jax.errors import UserError
from vq_jax.files import check_new, new_folder
from vq_jax.interop import hub
from vq_jax.interop.bits import CHOICES
from vq_jax.interop.extras import read_origin
from vq_jax.interop.state_dicts import titok_config, to_diffusers, to_taming, to_titok, to_var
from vq_jax.interop.var import SCALES
from vq_jax.interop.var import to_var as to_var_transformer
from vq_jax.interop.weights import ARRAYS, CONFIG, save_arrays, save_json, write_folder
from vq_jax.prior import TrainedPrior
from vq_jax.runs import find, load
from vq_jax.tasks.model_card import CARD, model_card
from vq_jax.tasks.model_files import Model, copy_other_files, extra_arrays, own_arrays
from vq_jax.tokenizer import TrainedTokenizer


def export(
    workdir: Path, output: Path, format: str, bits: int = 32, push: str | None = None
) -> None:
    """Exports a trained model into a folder, in another codebase's format or vq_jax's own.

    Args:
      workdir: the run's folder.
      output: the folder to write; it must not exist, or be empty.
      format: one of `FORMATS`.
      bits: of the params in vq_jax's own format: 32, 16 or 8.
      push: hf:OWNER/NAME, a repository at the Hub to upload the folder to, with a card; None uploads nothing.

    Raises:
      UserError: the format does not support the model, the folder cannot be written, or the Hub refuses it.
    """
    if format not in FORMATS:
        raise UserError(f"format is {format!r}: use one of {', '.join(FORMATS)}")
    if bits not in CHOICES:
        raise UserError(f"bits is {bits}: use one of {', '.join(map(str, CHOICES))}")
    if bits != 32 and format != "vq_jax":
        raise UserError(f"format is {format!r}: only 'vq_jax' stores params in {bits} bits")
    check_new(output)
    place = None if push is None else hub.parse(push)
    if place is not None:
        hub.check_login(place)
    folder = find(workdir)
    model = load(folder)
    kind = configs.kind_of(model.config)
    if kind == "prior":
        possible = ["vq_jax"] + ["var"] * (model.config.prior.name == "next_scale")
        if format not in possible:
            raise UserError(
                f"{folder} holds a prior: use format {' or '.join(map(repr, possible))}"
            )
    with new_folder(output) as temporary:
        fewer = {} if bits == 32 else {"bits": bits}
        FORMATS[format](model, folder, temporary, **fewer)
        if place is not None:
            (temporary / CARD).write_text(model_card(model, folder, place, format, bits))
            _hide_local_paths(temporary / CONFIG)
    files = ", ".join(
        f"{p.name} ({p.stat().st_size / 1e6:,.1f} MB)" for p in sorted(output.iterdir())
    )
    print(f"exported {folder} to {output}: {files}")
    if place is not None:
        try:
            print(f"pushed {output} to {hub.upload(output, place)}")
        except UserError as e:
            raise UserError(f"{e}; {output} is complete: remove it, and export again") from e


def _hide_local_paths(path: Path) -> None:
    """Leaves the last part only of the folders that a config names: others know no folder of this machine."""
    if not path.exists():
        return
    config = json.loads(path.read_text())
    for section, field in (
        (config, "tokenizer"),
        (config, "start_from"),
        (config.get("data", {}), "folder"),
    ):
        if isinstance(section.get(field), str):
            section[field] = Path(section[field]).name
    path.write_text(json.dumps(config, indent=2) + "\n")


def _vq_jax(model: Model, workdir: Path, output: Path, bits: int = 32) -> None:
    """As vq_jax's own format. If fewer bits change params, the files beside them do not belong to the result."""
    config, arrays, step = own_arrays(model, workdir)
    changed = write_folder(output, arrays, step, bits)
    configs.save(config, output / CONFIG)
    if changed:
        print(
            f"params of {bits} bits make it another model: .vqz files and priors of the run do not fit it"
        )
    else:
        copy_other_files(model, workdir, output)


def _diffusers(tokenizer: TrainedTokenizer, workdir: Path, output: Path) -> None:
    arrays, config_json = to_diffusers(
        tokenizer.config, tokenizer.variables, tokenizer.codes.num_codes, read_origin(workdir)
    )
    save_arrays(arrays, output / "diffusion_pytorch_model.safetensors")
    save_json(config_json, output / CONFIG)


def _taming(tokenizer: TrainedTokenizer, workdir: Path, output: Path) -> None:
    arrays, config_yaml, remap = to_taming(
        tokenizer.config, tokenizer.variables, tokenizer.codes.num_codes, extra_arrays(workdir)
    )
    if remap is not None:
        np.save(output / "used.npy", remap)
    save_arrays(arrays, output / ARRAYS)
    (output / "config.yaml").write_text(yaml.safe_dump(config_yaml, sort_keys=False))


def _var(model: Model, workdir: Path, output: Path) -> None:
    """As VAR's `VQVAE`, or for a prior as its `VAR`."""
    del workdir
    if isinstance(model, TrainedPrior):
        grids = model.tokenizer.codes.grids
        arrays = to_var_transformer(model.params, grids)
    else:
        grids = model.codes.grids
        arrays = to_var(model.config, model.variables)
    save_arrays(arrays, output / ARRAYS)
    save_json({SCALES: [side for side, _ in grids]}, output / CONFIG)


def _titok(tokenizer: TrainedTokenizer, workdir: Path, output: Path) -> None:
    del workdir
    save_arrays(to_titok(tokenizer.config, tokenizer.variables), output / ARRAYS)
    save_json(titok_config(tokenizer.config), output / CONFIG)


def _stablehlo(tokenizer: TrainedTokenizer, workdir: Path, output: Path) -> None:
    """Exports encoder and decoder as programs that contain the weights, for any batch size."""
    if not importlib.util.find_spec("flatbuffers"):
        raise UserError("format 'stablehlo' needs flatbuffers: pip install 'vq_jax[export]'")
    module, variables = tokenizer.module, tokenizer.variables

    def encode(images):
        def encode_one(image):
            codes: Any = module.apply(variables, image[None], method="encode_to_codes")
            return codes[0]

        # One image at a time: the codebook search divides the vectors into blocks, and their number
        # must not depend on the unknown batch size.
        return jax.vmap(encode_one)(images)

    def decode(codes):
        return module.apply(variables, codes, method="decode_codes")

    (batch,) = jax.export.symbolic_shape("batch")
    example, codes, noun = tokenizer.spec, tokenizer.codes, f"{tokenizer.modality.noun}s"
    for name, function, shape, dtype in (
        ("encode", encode, example.shape, example.dtype),
        ("decode", decode, codes.shape, jnp.int32),
    ):
        spec = jax.ShapeDtypeStruct((batch, *shape), dtype)
        program = jax.export.export(jax.jit(function), platforms=("cpu", "cuda", "tpu"))(spec)
        (output / f"{name}.stablehlo").write_bytes(bytes(program.serialize()))
    made = f"logits of {noun}" if tokenizer.modality.distribution else noun
    description = {
        "encode": f"{_signature(example.dtype, example.shape)} {noun} to int32 codes",
        "decode": f"{_signature('int32', codes.shape)} codes to float32 {made}",
        "num_codes": codes.num_codes,
        "use": f"jax.export.deserialize(bytearray(open('encode.stablehlo', 'rb').read())).call({noun})",
    }
    save_json(description, output / CONFIG)


def _signature(dtype: Any, shape: tuple[int, ...]) -> str:
    return f"{jnp.dtype(dtype).name} [batch, {', '.join(map(str, shape))}]"


# format -> function that writes a model, loaded from a run's folder, into an empty folder
FORMATS: dict[str, Callable[..., None]] = {
    "diffusers": _diffusers,
    "taming": _taming,
    "vq_jax": _vq_jax,
    "var": _var,
    "titok": _titok,
    "stablehlo": _stablehlo,
}

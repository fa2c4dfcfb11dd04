"""The card of a model that is uploaded to the Hub."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import yaml

from vq_jax import config as configs
from vq_jax.files import ships
from vq_jax.interop.extras import read_origin
from vq_jax.interop.hub import Place
from vq_jax.interop.weights import stored_bits
from vq_jax.tasks.model_files import Model

CARD = "README.md"
_TAGS = {"image": "image", "text": "text", "video": "video", "vector": "embeddings"}
# format -> what opens the files
_FILES = {
    "vq_jax": "",
    "diffusers": "The files are those of a `VQModel` of diffusers.",
    "taming": "The files are those of taming-transformers; `config.yaml` is their config.",
    "var": "The files are those of VAR; `config.json` has the sides of its scales.",
    "titok": "The names and layouts are those of TiTok, whose code opens the sizes that it has a name for.",
    "stablehlo": "The files are programs that contain the weights; `config.json` says how to call them.",
}


def model_card(model: Model, folder: Path, place: Place, format: str, bits: int = 32) -> str:
    """Returns a card in Markdown: what the model is, how to open it, its figures and its training.

    A model that ships keeps its own card, below the Hub's header, if the files are those that ship.

    Args:
      model, folder: the model, and where it was loaded from.
      place: the repository.
      format: of the files.
      bits: of the params. Below 32, the figures of the run are not those of the files.
    """
    kind = configs.kind_of(model.config)
    header: dict[str, Any] = {
        "tags": ["vq_jax", kind, _TAGS.get(model.modality.name, model.modality.name), "jax"]
    }
    if format in ("vq_jax", "diffusers"):
        header = {"library_name": format, **header}
    front = f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n"
    own = folder / CARD
    if ships(folder) and format == "vq_jax" and stored_bits(folder) == bits:
        return front + own.read_text()
    name = place.repository.partition("/")[2]
    lines = [f"# {name}", "", _described(model, kind), "", "## Use", ""]
    lines += [_FILES[format]] if _FILES[format] else _usage(place, name, kind)
    if bits < 32:
        lines += ["", f"Params are stored in {bits} bits, and open as float32."]
    if bits == 32 and (figures := _figures(folder)):
        lines += ["", "## Figures", "", "Held out, by `--mode=evaluate`.", ""]
        lines += ["| figure | value |", "|---|---|", *figures]
    return front + "\n".join([*lines, "", "## Training", "", _trained(model, folder)]) + "\n"


def _usage(place: Place, name: str, kind: str) -> list[str]:
    tokenizer = " --tokenizer=PATH" if kind == "prior" else ""
    lines = [
        "    pip install 'vq_jax[hub]'",
        f"    python -m vq_jax.main --mode=import --input={place} --workdir=runs/{name}{tokenizer}",
        "",
        "```python",
        "import vq_jax",
        "",
        f'model = vq_jax.load("runs/{name}")',
        "```",
    ]
    if tokenizer:
        lines += ["", "`PATH` is the folder of its tokenizer, which is a model of its own."]
    return lines


def _described(model: Model, kind: str) -> str:
    config, codes = model.config, model.codes if hasattr(model, "codes") else model.tokenizer.codes
    params = model.variables["params"]
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(params)) / 1e6
    what = (
        f"A tokenizer of {model.modality.noun}s (`{config.model.name}`, quantizer `{config.quantizer.name}`)"
        if kind == "tokenizer"
        else f"A prior over the codes of {model.modality.noun}s (`{config.prior.name}`)"
    )
    grid = "x".join(map(str, codes.shape))
    return (
        f"{what}, for vq_jax: {count:.2f} million params; "
        f"{grid} codes of {math.log2(codes.num_codes):.1f} bits for an example of the training size."
    )


def _figures(folder: Path) -> list[str]:
    try:
        found: Any = json.loads((folder / "evaluation.json").read_text())
    except (OSError, ValueError):
        return []
    if not isinstance(found, dict):
        return []
    return [f"| {k} | {v:.4g} |" for k, v in found.items() if type(v) in (int, float)]


def _trained(model: Model, folder: Path) -> str:
    if not model.step or read_origin(folder):
        return "The weights are imported: they were not trained with vq_jax."
    data = model.config.data
    phases = {k: v for k, v in model.config.phases.to_dict().items() if v}
    steps = ", ".join(f"{name} {count:,}" for name, count in phases.items()) or "none"
    return (
        f"{model.step:,} steps (phases: {steps}) on `{data.source}`, batches of {data.batch_size}."
    )

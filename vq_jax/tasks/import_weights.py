"""Imports a tokenizer or prior of another codebase into a run's folder."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vq_jax import config as configs
from vq_jax.errors import UserError
from vq_jax.files import check_new, new_folder
from vq_jax.interop import hub, priors
from vq_jax.interop.detection import (
    FoundTokenizer,
    find_discriminator,
    find_lpips,
    find_tokenizer,
)
from vq_jax.interop.extras import CARRIED, save_origin
from vq_jax.interop.families import FAMILIES
from vq_jax.interop.names import Names
from vq_jax.interop.state_dicts import loss_state_dict
from vq_jax.interop.weights import (
    CONFIG,
    Weights,
    differences,
    flat,
    holds_arrays,
    listing,
    nested,
    read_weights,
    write_folder,
)
from vq_jax.models.transformer import init_params
from vq_jax.runs import load, load_prior, load_tokenizer_of
from vq_jax.tasks.model_files import copy_other_files, own_arrays
from vq_jax.tokenizer import TrainedTokenizer

FORMATS = (*FAMILIES, *priors.SIGNATURES, "vq_jax")
# Config file in the imported folder, for training from the imported weights.
_PYTHON_CONFIG = "config.py"
_PYTHON_CONFIG_TEXT = '''"""The config for training from the weights imported into this folder.

    python -m vq_jax.main --config={folder}/config.py --workdir=runs/tuned \\\\
        --config.data.folder=PATH
"""

from pathlib import Path

from vq_jax.config import load


def get_config():
    folder = Path(__file__).resolve().parent
    config = load(folder / "config.json")
    config.start_from = str(folder)
    return config
'''


def import_weights(
    input: Path,
    workdir: Path,
    *,
    format: str | None = None,
    tokenizer: Path | None = None,
    classes: int = 0,
    heads: int | None = None,
    sos_token: int = 0,
    resolution: int | None = None,
) -> None:
    """Imports the weights of another codebase into a run's folder, with a config for them.

    Args:
      input: a weight file, or a folder with one; or hf:OWNER/NAME[/FILE], see `interop.hub`.
      workdir: the folder to write; it must not exist, or be empty.
      format: one of `FORMATS`; by default it is detected from names and shapes.
      tokenizer: folder of a prior's tokenizer, for a prior whose file has no tokenizer.
      classes, heads, sos_token: see `priors.read_prior`.
      resolution: see `detection.find_tokenizer`.

    Raises:
      UserError: the input cannot be read, has no known format, or its arrays are missing,
        unexpected or of the wrong shape. The text lists all of them, and nothing is written.
    """
    if format and format not in FORMATS:
        raise UserError(f"format is {format!r}: use one of {', '.join(FORMATS)}")
    check_new(workdir)
    if hub.is_place(input):
        input = hub.fetch(hub.parse(input))
    elif not input.exists():
        raise UserError(f"input: {input} does not exist; give a weight file or a folder with one")
    if format == "vq_jax" or (not format and input.is_dir() and _is_own_format(input)):
        of_prior = tokenizer is not None and configs.kind_of_run(input) == "prior"
        model = load_prior(input, tokenizer) if of_prior else load(input)
        config, arrays, step = own_arrays(model, input)
        if of_prior:
            with config.unlocked():
                config.tokenizer = str(tokenizer)
        with new_folder(workdir) as folder:
            _write(folder, workdir, config, arrays, step)
            copy_other_files(model, input, folder)
        print(f"imported vq_jax: {_size(arrays)}, into {workdir}")
        return
    weights = read_weights(input)
    kind = format if format in priors.SIGNATURES else None
    if kind is None and format is None:
        kind = priors.detect_prior(weights)
    if kind is None:
        with new_folder(workdir) as folder:
            imported = _read_tokenizer(weights, format, resolution)
            imported.write(folder, workdir)
        imported.report(workdir)
        return
    if priors.detect_prior(weights) != kind:
        raise UserError(
            f"{weights.path} contains no {kind}: give no format to detect it, or another one"
        )
    with new_folder(workdir) as folder:
        _import_prior(weights, folder, workdir, tokenizer, classes, heads, sos_token, resolution)


def _is_own_format(folder: Path) -> bool:
    """Returns whether a folder is in vq_jax's own format: its config has training phases."""
    path = folder / CONFIG
    return holds_arrays(folder) and path.exists() and '"phases"' in path.read_text(errors="replace")


def _size(arrays: dict[str, np.ndarray]) -> str:
    """Formats the number of params."""
    params = sum(a.size for name, a in arrays.items() if name.startswith("params/"))
    return f"{params / 1e6:,.1f} million params"


def _write(
    folder: Path, workdir: Path, config: ConfigDict, arrays: dict[str, Any], step: int = 0
) -> None:
    """Writes a run's files into a folder that will be renamed to `workdir`."""
    write_folder(folder, arrays, step)
    (folder / _PYTHON_CONFIG).write_text(_PYTHON_CONFIG_TEXT.replace("{folder}", str(workdir)))
    configs.save(config, folder / CONFIG)


# --- tokenizers -----------------------------------------------------------------------------------


def _config_of(sections: dict[str, Any], discriminator: dict[str, Any] | None) -> ConfigDict:
    """Builds a tokenizer's config for training from the imported weights.

    Args:
      sections: the sections that a family's reader returned.
      discriminator: the fields of `config.discriminator`, None for the defaults.
    """
    config = configs.base(sections["model"]["name"], sections["quantizer"]["name"])
    for name, section in sections.items():
        config[name].update({k: v for k, v in section.items() if k != "name"})
    if discriminator:
        config.discriminator.update({k: v for k, v in discriminator.items() if k != "name"})
    # Defaults for training: the adversarial phase from the first step.
    config.phases.adversarial = 100_000
    config.kmeans_batches = 0
    config.data.batch_size = 8
    config.data.crop = "random"
    config.data.source = "folder"  # The user sets data.folder.
    for optim in (config.optim, config.disc_optim):
        optim.update({"lr": 3.6e-5, "b1": 0.5, "b2": 0.9})
    return config


@dataclasses.dataclass(frozen=True)
class _Imported:
    """A tokenizer that is ready to be written.

    Attributes:
      tokenizer: the tokenizer.
      arrays: name -> array, all arrays to write.
      lines: lines to print; {workdir} stands for the folder.
      config_json: content of the config.json that came with it, {} if there was none.
    """

    tokenizer: TrainedTokenizer
    arrays: dict[str, np.ndarray]
    lines: list[str]
    config_json: dict[str, Any]

    def write(self, folder: Path, workdir: Path) -> None:
        """Writes it into a folder that will be renamed to `workdir`."""
        _write(folder, workdir, self.tokenizer.config, self.arrays)
        if self.config_json:
            save_origin(self.config_json, folder)

    def report(self, workdir: Path) -> None:
        """Prints what was imported."""
        print(f"imported {self.lines[0]}, into {workdir}")
        for line in self.lines[1:]:
            print(f"  {line.replace('{workdir}', str(workdir))}")


def _read_tokenizer(weights: Weights, format: str | None, resolution: int | None) -> _Imported:
    """Reads the tokenizer in a weight file; see `import_weights`.

    Raises:
      UserError: there is no supported tokenizer, or its arrays do not match its config.
    """
    try:
        found = find_tokenizer(weights, format, resolution)
    except UserError as e:
        text = str(e)
        raise UserError(text if str(weights.path) in text else f"{weights.path}: {text}") from e
    discriminator = find_discriminator(weights)
    lpips = find_lpips(weights)
    config = _config_of(found.sections, discriminator and discriminator[0])
    configs.check(config)
    if discriminator and differences(
        discriminator[1], flat({"discriminator": _discriminator_shapes(config)})
    ):
        discriminator = None
    module = configs.make_tokenizer(config)
    shapes = flat(configs.trace_shapes(config).variables)
    table = Names.from_rows(found.family.rows(config.model))
    arrays, used = table.to_ours(found.arrays, shapes)
    # Counts of how often codes are used start at 1.
    counts = {name for name in shapes if name.endswith("/cluster_size")} - arrays.keys()
    arrays |= {name: np.ones(shapes[name].shape, np.float32) for name in counts}
    lines = differences(arrays, shapes, lambda path: f"{table.their_name(path)} (here {path})")
    unexpected = sorted(found.arrays.keys() - used)
    lines += [f"unexpected: {name}, {found.arrays[name].shape}" for name in unexpected]
    if lines:
        raise UserError(
            f"{weights.path} has the format {found.family.name}, but its arrays do not match; "
            "nothing is imported:" + listing(lines)
        )
    extra = (discriminator[1] if discriminator else {}) | lpips
    converted = loss_state_dict(extra, config.discriminator.n_layers)
    # Keep the other arrays of its training unchanged, so that an export can return them.
    extra |= {
        f"{CARRIED}/{k}": np.asarray(a) for k, a in found.carried.items() if k not in converted
    }
    variables = jax.tree.map(jnp.asarray, nested(arrays))
    tokenizer = TrainedTokenizer(config, module, variables, 0)
    report = _report(
        tokenizer, found, _size(arrays), discriminator=bool(discriminator), lpips=bool(lpips)
    )
    if broken := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        report.append(
            f"warning: {len(broken)} arrays have NaN or infinite values, the first is {broken[0]}"
        )
    return _Imported(tokenizer, arrays | extra, report, weights.config_json)


def _discriminator_shapes(config: ConfigDict) -> Any:
    """Returns the shapes of the discriminator's params, as nested dicts."""
    discriminator = configs.make_discriminator(config)
    assert discriminator is not None  # `_config_of` sets an adversarial phase.
    x = jax.ShapeDtypeStruct((1, *configs.spec_of(config).shape), jnp.float32)
    return jax.eval_shape(discriminator.init, jax.random.key(0), x)["params"]


def _report(
    tokenizer: TrainedTokenizer,
    found: FoundTokenizer,
    size: str,
    *,
    discriminator: bool,
    lpips: bool,
) -> list[str]:
    """Returns the lines that describe an import.

    Args:
      tokenizer: the imported tokenizer.
      found: what was found in the file.
      size: number of params, as text.
      discriminator: whether the discriminator is imported, too.
      lpips: whether the LPIPS weights are imported, too.
    """
    strides = "x".join(map(str, tokenizer.strides or ()))
    pixels = f" of {strides} pixels" if strides else ""
    side = tokenizer.config.data.resolution
    codes = f"{tokenizer.codes.num_codes:,} codes{pixels}"
    lines = [f"{found.family.name}: {size}, {codes}, for images of {side}x{side}"]
    if found.resolution_assumed:
        lines.append(
            f"the resolution {side} is assumed, because the file does not contain it: give "
            "resolution if it is another"
        )
    lines += found.notes
    if found.averaged:
        lines.append("the moving averages (EMA) of the weights are imported")
    if discriminator or lpips:
        parts = " and ".join(["the discriminator"] * discriminator + ["LPIPS"] * lpips)
        lines.append(
            f"also imported: {parts}; train from all of them with the config "
            f"{{workdir}}/{_PYTHON_CONFIG}"
        )
    if found.family.name == "taming":
        lines.append("IBQ's files have the same names: if this is one, give the format 'ibq'")
    if found.other_arrays:
        others = sorted(found.other_arrays.items())[:8]
        named = ", ".join(f"{n} of {ascii(name)[1:-1]}" for name, n in others)
        lines.append(f"other arrays in the file, not imported: {named}")
    return lines


# --- priors ---------------------------------------------------------------------------------------


def _prior_config(
    found: priors.FoundPrior, tokenizer: TrainedTokenizer, tokenizer_folder: Path
) -> ConfigDict:
    """Builds a prior's config for training from the imported weights."""
    config = configs.base_prior(found.name)
    config.tokenizer = str(tokenizer_folder)
    config.prior.update(found.fields)
    config.sampling.update(found.sampling)
    config.phases.prior = 100_000
    config.loss.label_dropout = found.label_dropout
    config.data.resolution = tokenizer.config.data.resolution
    config.data.source = "folder"
    codes, spec = config.codes, tokenizer.codes
    codes.num_codes, codes.grid, codes.grids = spec.num_codes, spec.grid, spec.grids
    codes.latent = tokenizer.module.quantizer.dim
    codes.example = tokenizer.spec.shape
    codes.classes = tuple(str(i) for i in range(found.classes))
    configs.check(config)
    return config


def _import_prior(
    weights: Weights,
    folder: Path,
    workdir: Path,
    tokenizer: Path | None,
    classes: int,
    heads: int | None,
    sos_token: int,
    resolution: int | None,
) -> None:
    """Writes a prior, and the tokenizer if its file has one, into a folder.

    Args:
      weights: the file.
      folder: the folder to write, which will be renamed to `workdir`.
      workdir, tokenizer, classes, heads, sos_token, resolution: see `import_weights`.
    """
    first_stage: _Imported | None = None
    if tokenizer is None:
        tokenizer_folder = workdir / "tokenizer"
        try:
            rest = dataclasses.replace(weights, arrays=priors.without_prior(weights))
            first_stage = _read_tokenizer(rest, None, resolution)
        except UserError as e:
            raise UserError(
                f"{weights.path} contains a prior without its tokenizer: import the tokenizer "
                f"first, and give its folder as tokenizer ({e})"
            ) from e
        opened = first_stage.tokenizer
    else:
        tokenizer_folder, opened = tokenizer, load_tokenizer_of(tokenizer)
    if opened.codes.code_shape:
        raise UserError(
            f"tokenizer: {tokenizer_folder} has several codes per position, but the prior has one; "
            "give the tokenizer that the prior was trained on"
        )
    found = priors.read_prior(weights, opened.codes, classes, heads, sos_token)

    config = _prior_config(found, opened, tokenizer_folder)
    module = configs.make_prior(config)
    shapes = jax.eval_shape(lambda: init_params(module, jax.random.key(0)))
    arrays = {f"params/{name}": array for name, array in found.params.items()}
    if lines := differences(arrays, flat({"params": shapes})):
        raise UserError(
            f"the arrays in {weights.path} do not match the prior's config; nothing is imported:"
            + listing(lines)
        )
    arrays["fingerprint"] = np.frombuffer(opened.fingerprint, np.uint8)
    _write(folder, workdir, config, arrays)
    if first_stage is not None:
        (folder / "tokenizer").mkdir()
        first_stage.write(folder / "tokenizer", tokenizer_folder)
        first_stage.report(tokenizer_folder)
    labels = f"{found.classes} classes" if found.classes else "no classes"
    print(
        f"imported {found.format}: {_size(arrays)}, {labels}, for the tokenizer "
        f"{tokenizer_folder}, into {workdir}"
    )

"""Brings a tokenizer, or a prior, of another codebase into a folder that every mode opens."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vq_jax import config as configs
from vq_jax.errors import UserError
from vq_jax.interop import families, priors
from vq_jax.interop.names import Names
from vq_jax.interop.weights import (
    ARRAYS,
    CONFIG,
    Weights,
    differences,
    flat,
    holds_arrays,
    listing,
    nested,
    read_weights,
    save_arrays,
)
from vq_jax.models.transformer import init_params
from vq_jax.prior import load_prior, load_tokenizer
from vq_jax.tasks.export import (
    CARRIED,
    check_new,
    hand_on,
    names_in_training,
    new_folder,
    own_arrays,
    save_origin,
)
from vq_jax.tokenizer import TrainedTokenizer
from vq_jax.tokenizer import load as load_trained

FORMATS = (*families.FAMILIES, "taming_transformer", "maskgit_transformer", "vq_jax")
# In the imported folder: the config once more, as a file for --config.
_PYTHON = "config.py"
_CONFIG_FILE = '''"""What was imported into this folder, as a config to train on from.

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
    """`--mode=import`: weights of another codebase, as a run's folder with a config.

    Args:
      input: a file of weights, or a folder with one.
      workdir: the folder to write; it must not exist, or be empty.
      format: one of `FORMATS`; by default it is told by names and shapes.
      tokenizer: of a prior whose file holds none.
      classes, heads, sos_token: see `priors.read_prior`.
      resolution: see `families.find_tokenizer`.

    Raises:
      UserError: it cannot be read or is of no known kind, or arrays are missing, left over or of
        another shape; the text lists all of them, and nothing is written.
    """
    if format and format not in FORMATS:
        raise UserError(f"--format={format}: use one of {', '.join(FORMATS)}")
    if not input.exists():
        raise UserError(
            f"there is no {input}: --input takes a file of weights or a folder with one"
        )
    check_new(workdir)
    if format == "vq_jax" or (not format and input.is_dir() and _is_own(input)):
        opened = load_prior(input, tokenizer) if configs.holds_prior(input) else load_trained(input)
        config, arrays, step = own_arrays(opened, input)
        if tokenizer is not None and configs.is_prior(config):
            with config.unlocked():
                config.tokenizer = str(tokenizer)
        with new_folder(workdir) as folder:
            _write(folder, workdir, config, arrays, step)
            hand_on(opened, input, folder)
        print(f"imported vq_jax: {_size(arrays)}, into {workdir}")
        return
    weights = read_weights(input)
    kind = format if format in ("taming_transformer", "maskgit_transformer") else None
    if kind is None and format is None:
        kind = priors.holds_prior(weights)
    if kind is None:
        with new_folder(workdir) as folder:
            found = _read_tokenizer(weights, format, resolution)
            found.write(folder, workdir)
        found.tell(workdir)
        return
    if priors.holds_prior(weights) != kind:
        raise UserError(f"{weights.path} is no {kind}: leave --format out, or name another")
    with new_folder(workdir) as folder:
        _import_prior(weights, folder, workdir, tokenizer, classes, heads, sos_token, resolution)


def _is_own(folder: Path) -> bool:
    """Whether a folder is of our own form: its config has our training phases."""
    path = folder / CONFIG
    return holds_arrays(folder) and path.exists() and '"phases"' in path.read_text(errors="replace")


def _size(arrays: dict[str, np.ndarray]) -> str:
    params = sum(a.size for name, a in arrays.items() if name.startswith("params/"))
    return f"{params / 1e6:,.1f} million params"


def _write(
    folder: Path, workdir: Path, config: ConfigDict, arrays: dict[str, Any], step: int = 0
) -> None:
    """Writes a run's files into a folder that will be `workdir`."""
    save_arrays(arrays, folder / ARRAYS, step=str(step))
    (folder / _PYTHON).write_text(_CONFIG_FILE.replace("{folder}", str(workdir)))
    configs.save(config, folder / CONFIG)


# --- tokenizers -----------------------------------------------------------------------------------


def _config_of(sections: dict[str, Any], discriminator: dict[str, Any] | None) -> ConfigDict:
    """The config that a family's reader describes, ready to be trained on."""
    config = configs.base(sections["model"]["name"], sections["quantizer"]["name"])
    for name, section in sections.items():
        config[name].update({k: v for k, v in section.items() if k != "name"})
    if discriminator:
        config.discriminator.update({k: v for k, v in discriminator.items() if k != "name"})
    # What training on from it does where it is not told otherwise: everything from the first step.
    config.phases.adversarial = 100_000
    config.kmeans_batches = 0
    config.data.batch_size = 8
    config.data.crop = "random"
    config.data.source = "folder"  # which one, the user says
    for optim in (config.optim, config.disc_optim):
        optim.update({"lr": 3.6e-5, "b1": 0.5, "b2": 0.9})
    return config


@dataclasses.dataclass(frozen=True)
class _Imported:
    """A tokenizer, ready to be written: opened, the arrays to write, and what the user is told."""

    tokenizer: TrainedTokenizer
    arrays: dict[str, np.ndarray]
    lines: list[str]
    about: dict[str, Any]

    def write(self, folder: Path, workdir: Path) -> None:
        _write(folder, workdir, self.tokenizer.config, self.arrays)
        if self.about:
            save_origin(self.about, folder)

    def tell(self, workdir: Path) -> None:
        print(f"imported {self.lines[0]}, into {workdir}")
        for line in self.lines[1:]:
            print(f"  {line.replace('{workdir}', str(workdir))}")


def _read_tokenizer(weights: Weights, format: str | None, resolution: int | None) -> _Imported:
    try:
        found = families.find_tokenizer(weights, format, resolution)
    except UserError as e:
        text = str(e)
        raise UserError(text if str(weights.path) in text else f"{weights.path}: {text}") from e
    judge = families.find_discriminator(weights)
    lpips = families.find_lpips(weights)
    config = _config_of(found.sections, judge and judge[0])
    configs.check(config)
    if judge and differences(judge[1], flat({"discriminator": _discriminator_shapes(config)})):
        judge = None
    module = configs.make_tokenizer(config)
    wanted = flat(configs.variable_shapes(config, module))
    table = Names.of(found.family.rows(config.model))
    arrays, used = table.take(found.arrays, wanted)
    # Statistics of how often codes are used start anew.
    statistics = {name for name in wanted if name.endswith("/cluster_size")} - arrays.keys()
    arrays |= {name: np.ones(wanted[name].shape, np.float32) for name in statistics}
    lines = differences(arrays, wanted, lambda path: f"{table.theirs(path)} (here {path})")
    left = sorted(found.arrays.keys() - used)
    lines += [f"left over: {name}, {found.arrays[name].shape}" for name in left]
    if lines:
        raise UserError(
            f"{weights.path} looks like {found.family.name}'s, and does not fit; nothing is "
            "imported:" + listing(lines)
        )
    beside = (judge[1] if judge else {}) | lpips
    given = names_in_training(beside, config.discriminator.n_layers)
    # What else was trained with it goes along as it is: export gives it back.
    beside |= {f"{CARRIED}/{k}": np.asarray(a) for k, a in found.carried.items() if k not in given}
    variables = jax.tree.map(jnp.asarray, nested(arrays))
    tokenizer = TrainedTokenizer(config, module, variables, 0)
    told = _what_came(tokenizer, found, _size(arrays), judge=bool(judge), lpips=bool(lpips))
    if broken := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        told.append(f"beware: {len(broken)} arrays are not finite, {broken[0]} the first of them")
    return _Imported(tokenizer, arrays | beside, told, weights.about)


def _discriminator_shapes(config: ConfigDict) -> Any:
    discriminator = configs.make_discriminator(config)
    assert discriminator is not None  # `_config_of` has a phase for it
    x = jax.ShapeDtypeStruct((1, *configs.image_shape(config)), jnp.float32)
    return jax.eval_shape(discriminator.init, jax.random.key(0), x)["params"]


def _what_came(
    tokenizer: TrainedTokenizer, found: families.Found, size: str, *, judge: bool, lpips: bool
) -> list[str]:
    """What the user is told of an import, a line each."""
    factor = tokenizer.factor
    pixels = f" of {factor}x{factor} pixels" if factor else ""
    side = tokenizer.config.data.resolution
    lines = [
        f"{found.family.name}: {size}, {tokenizer.num_codes:,} codes{pixels}, for images of {side}x{side}"
    ]
    if found.assumed:
        lines.append(
            f"{side} is assumed: nothing in the file says so; --resolution=N says otherwise"
        )
    lines += found.notes
    if found.averaged:
        lines.append("its moving averages were taken")
    if judge or lpips:
        came = " and ".join(["the discriminator"] * judge + ["LPIPS"] * lpips)
        lines.append(
            f"{came} came along: training starts from all with --config={{workdir}}/{_PYTHON}"
        )
    if found.family.name == "taming":
        lines.append("IBQ's files have the same names: if this is one, --format=ibq")
    if found.beside:
        others = sorted(found.beside.items())[:8]
        named = ", ".join(f"{n} of {ascii(name)[1:-1]}" for name, n in others)
        lines.append(f"left out, other arrays in the file: {named}")
    return lines


# --- priors ---------------------------------------------------------------------------------------


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
    first: _Imported | None = None
    if tokenizer is None:
        place = workdir / "tokenizer"
        try:
            rest = dataclasses.replace(weights, arrays=priors.without_prior(weights))
            first = _read_tokenizer(rest, None, resolution)
        except UserError as e:
            raise UserError(
                f"{weights.path} is a prior, without the tokenizer of its codes: import that first, "
                f"and name it with --tokenizer ({e})"
            ) from e
        opened = first.tokenizer
    else:
        place, opened = tokenizer, load_tokenizer(tokenizer, "--tokenizer")
    if opened.code_shape:
        raise UserError(f"{place} has several codes a position, and this prior one")
    found = priors.read_prior(weights, opened.grid, opened.num_codes, classes, heads, sos_token)

    config = configs.base_prior(found.name)
    config.tokenizer = str(place)
    config.prior.update(found.fields)
    config.sampling.update(found.sampling)
    config.phases.prior = 100_000
    # Without labels there is nothing to leave out; with them, it was never trained without.
    config.loss.label_dropout = 0.0
    config.data.resolution = opened.config.data.resolution
    config.data.source = "folder"
    codes = config.codes
    codes.num_codes, codes.grid = opened.num_codes, opened.grid
    codes.image = configs.image_shape(opened.config)
    codes.classes = tuple(str(i) for i in range(found.classes))
    configs.check(config)

    module = configs.make_prior(config)
    shapes = jax.eval_shape(lambda: init_params(module, jax.random.key(0)))
    arrays = {f"params/{name}": array for name, array in found.params.items()}
    if lines := differences(arrays, flat({"params": shapes})):
        raise UserError(f"{weights.path} does not fit; nothing is imported:" + listing(lines))
    arrays["fingerprint"] = np.frombuffer(opened.fingerprint, np.uint8)
    _write(folder, workdir, config, arrays)
    if first is not None:
        (folder / "tokenizer").mkdir()
        first.write(folder / "tokenizer", place)
        first.tell(place)
    labels = f"{found.classes} classes" if found.classes else "no classes"
    print(f"imported {found.format}: {_size(arrays)}, {labels}, for {place}, into {workdir}")

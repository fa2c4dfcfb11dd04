"""Opens what runs, imports and exports hold: tokenizers and priors, by folder or by name."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vq_jax import config as configs
from vq_jax.errors import UserError
from vq_jax.files import WEIGHTS, expanded, ships
from vq_jax.interop.weights import holds_arrays, read_folder
from vq_jax.models import Prior
from vq_jax.models.transformer import init_params, unstack
from vq_jax.prior import TrainedPrior
from vq_jax.tokenizer import TrainedTokenizer

RUNS = Path("runs")  # where runs are, if a name is no folder


def _bytes(data: ConfigDict | None) -> TrainedTokenizer:
    """The identity tokenizer of bytes, for examples as long as those of `data`."""
    config = configs.base("bytes", "lfq")
    config.quantizer.bits = 8
    if data is not None and "length" in data:
        config.data.length = data.length
    return TrainedTokenizer(config, configs.make_tokenizer(config), {"params": {}}, 0)


# Tokenizers that need no training, by name: function of a prior's section `data`, or None.
BUILT_IN: dict[str, Callable[[ConfigDict | None], TrainedTokenizer]] = {"bytes": _bytes}


def find(name_or_path: str | Path) -> Path:
    """Returns the folder of a run: the path itself, or runs/NAME, or that of a model that ships, NAME."""
    path = expanded(name_or_path)
    for folder in (RUNS, WEIGHTS):
        if not path.exists() and (folder / path / configs.FILE).is_file():
            return folder / path
    return path


def load(name_or_path: str | Path) -> TrainedTokenizer | TrainedPrior:
    """Opens a trained tokenizer or prior.

    Args:
      name_or_path: folder of a run, an import or an export; a name in the folder `runs`; the name of a model
        that ships with the package, such as "photo-codec"; or "bytes", the identity tokenizer of bytes.

    Raises:
      UserError: there is no such run, it has no checkpoint yet, or it does not fit its config.
    """
    folder = find(name_or_path)
    return LOADERS[configs.kind_of_run(folder)](folder)


def is_built_in(folder: Path) -> bool:
    """Whether a path that is no run's folder names a tokenizer that needs no training."""
    return str(folder) in BUILT_IN and not (folder / configs.FILE).exists()


def load_tokenizer(name_or_path: str | Path, data: ConfigDict | None = None) -> TrainedTokenizer:
    """Opens a trained tokenizer, with averaged params.

    Args:
      name_or_path: see `load`. The folder has `config.json`, and `checkpoints/` (the newest is read) or
        `model.safetensors`.
      data: a prior's section `data`, by which a built-in tokenizer knows the size of examples.

    Raises:
      UserError: see `load`; or it is a prior.
    """
    folder = find(name_or_path)
    if is_built_in(folder):
        return BUILT_IN[str(folder)](data)
    config = configs.load(folder / configs.FILE)
    if configs.kind_of(config) != "tokenizer":
        raise UserError(
            f"{folder} holds a prior, not a tokenizer; its tokenizer is {config.tokenizer}"
        )
    module = configs.make_tokenizer(config)
    shapes = configs.trace_shapes(config).variables
    if in_one_file(folder):
        step, tree = read_folder(folder, shapes)
        return TrainedTokenizer(config, module, jax.tree.map(jnp.asarray, tree), step)
    from vq_jax.training.checkpoint import read_newest  # imports Orbax, which takes a while

    stats = {name: tree for name, tree in shapes.items() if name != "params"}
    step, tree = read_newest(folder, "tokenizer", {"params": shapes["params"], "stats": stats})
    return TrainedTokenizer(config, module, {"params": tree["params"], **tree["stats"]}, step)


def load_prior(name_or_path: str | Path, tokenizer: str | Path | None = None) -> TrainedPrior:
    """Opens a trained prior and its tokenizer.

    Args:
      name_or_path: see `load`.
      tokenizer: the tokenizer's run, if it is not the one in the prior's config.

    Raises:
      UserError: either cannot be opened, or the prior is for another tokenizer.
    """
    folder = find(name_or_path)
    config = _prior_config(folder)
    opened = load_tokenizer_of(tokenizer or _tokenizer_of(folder, config), config.data)
    module, params, fingerprint, step = _read_prior(folder, config)
    check_fingerprint(opened, fingerprint, folder)
    return TrainedPrior(config, opened, module, params, step)


def read_prior(name_or_path: str | Path) -> tuple[Prior, dict[str, Any], jax.Array, int]:
    """Reads a trained prior without its tokenizer.

    Args:
      name_or_path: see `load`.

    Returns:
      the prior and its averaged params, with one tree for each layer; the fingerprint of the tokenizer that it was
      trained with, uint8 [32]; its number of training steps.

    Raises:
      UserError: it cannot be opened.
    """
    folder = find(name_or_path)
    return _read_prior(folder, _prior_config(folder))


def _read_prior(folder: Path, config: ConfigDict) -> tuple[Prior, dict[str, Any], jax.Array, int]:
    module = configs.make_prior(config)
    params = jax.eval_shape(partial(init_params, module), jax.random.key(0))
    wanted = {"params": params, "fingerprint": jax.ShapeDtypeStruct((32,), jnp.uint8)}
    if in_one_file(folder):
        step, tree = read_folder(folder, wanted)
    else:
        from vq_jax.training.checkpoint import read_newest  # imports Orbax, which takes a while

        step, tree = read_newest(folder, "prior", wanted)
    tree = jax.tree.map(jnp.asarray, tree)
    return *unstack(module, tree["params"]), tree["fingerprint"], step


def _prior_config(folder: Path) -> ConfigDict:
    config = configs.load(folder / configs.FILE)
    if configs.kind_of(config) != "prior":
        raise UserError(
            f"{folder} holds a tokenizer, not a prior: name a prior over its codes, or train one whose config "
            "has it as tokenizer"
        )
    return config


LOADERS: dict[str, Callable[[Path], TrainedTokenizer | TrainedPrior]] = {
    "tokenizer": load_tokenizer,
    "prior": load_prior,
}


def load_tokenizer_of(tokenizer: str | Path, data: ConfigDict | None = None) -> TrainedTokenizer:
    """Opens a prior's tokenizer; see `load_tokenizer`.

    Raises:
      UserError: see `load`; the message says which argument or config field to change.
    """
    try:
        return load_tokenizer(tokenizer, data)
    except UserError as e:
        raise UserError(
            f"the prior's tokenizer: {e}; set tokenizer to the folder of its run"
        ) from e


def tokenizer_folder(name_or_path: str | Path, tokenizer: str | Path | None = None) -> Path:
    """Returns the folder of a run's tokenizer: its own, or that of a prior's tokenizer."""
    folder = find(name_or_path)
    if configs.kind_of_run(folder) == "tokenizer":
        return folder
    return find(tokenizer or _tokenizer_of(folder, configs.load(folder / configs.FILE)))


def _tokenizer_of(folder: Path, config: ConfigDict) -> str | Path:
    """The tokenizer that a prior's config names; that of a model that ships is beside it."""
    beside = folder.parent / config.tokenizer
    return beside if ships(folder) and beside.is_dir() else config.tokenizer


def check_fingerprint(tokenizer: TrainedTokenizer, fingerprint: Any, owner: str | Path) -> None:
    """Raises UserError unless a prior, or a set of codes, is of this tokenizer.

    Args:
      tokenizer: the one given.
      fingerprint: uint8 [32], of the tokenizer that is needed.
      owner: what needs it, for the message.
    """
    needed = bytes(np.asarray(fingerprint, np.uint8))
    if needed != tokenizer.fingerprint:
        raise UserError(
            f"{owner} is for the codes of another tokenizer: its fingerprint is {needed.hex()[:12]}, "
            f"that of the tokenizer given {tokenizer.fingerprint.hex()[:12]}; name the right one, or "
            "train a new one"
        )


def in_one_file(folder: Path) -> bool:
    """Whether a folder's arrays are in `model.safetensors`, because it was not trained further."""
    return holds_arrays(folder) and not has_checkpoints(folder)


def has_checkpoints(folder: Path) -> bool:
    """Whether training has saved a checkpoint in a folder."""
    return any((folder / "checkpoints").glob("[0-9]*"))

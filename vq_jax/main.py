"""The front door.

python -m vq_jax.main --config=configs/default.py
python -m vq_jax.main --mode=plan --config=configs/vqgan_imagenet256.py
python -m vq_jax.main --mode=evaluate --workdir=runs/default
python -m vq_jax.main --mode=reconstruct --workdir=runs/default --input=my.png --output=out.png
"""

import difflib
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from vq_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "A file of configs/; its fields can be changed on the command line: --config.optim.lr=1e-4.",
)
_MODE = flags.DEFINE_string("mode", "train", "What to do: train, plan, evaluate or reconstruct.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run's folder; by default runs/ and the config file's name."
)
_INPUT = flags.DEFINE_string("input", None, "reconstruct: an image, or a folder of images.")
_OUTPUT = flags.DEFINE_string("output", None, "reconstruct: the file or folder to write.")
_SIDE_BY_SIDE = flags.DEFINE_bool("side_by_side", False, "reconstruct: the original to the left.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "train: one process of many, by jax.distributed and the cluster's settings.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "distributed: HOST:PORT of process 0, where the cluster does not say."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "distributed: how many, likewise.")
_PROCESS = flags.DEFINE_integer("process", None, "distributed: which of them, likewise.")
_DEVICE = flags.DEFINE_string("device", "", "plan: a TPU to compile for, such as tpu-v5e.")
_DEVICES = flags.DEFINE_integer("devices", 1, "plan: how many devices share the batch.")
_SHARE = flags.DEFINE_float("share", 0.4, "plan: the share of a device's peak that is reached.")
_PROFILE = flags.DEFINE_bool("profile", False, "train: write a trace of ten steps.")


def _train(workdir: Path) -> None:
    from vq_jax import config as configs
    from vq_jax.tasks.train import train

    if _CONFIG.value is None:
        raise UserError("training needs --config=configs/NAME.py")
    if _DISTRIBUTED.value:
        from vq_jax.training import parallel

        parallel.join_processes(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    configs.check(_CONFIG.value)
    train(_CONFIG.value, workdir, profile=_PROFILE.value)


def _plan(workdir: Path) -> None:
    from vq_jax import config as configs
    from vq_jax.tasks.plan import plan

    if (config := _CONFIG.value) is None:
        config = configs.load(workdir / "config.json")
    else:
        configs.check(config)
    plan(config, devices=_DEVICES.value, share=_SHARE.value, device=_DEVICE.value)


def _evaluate(workdir: Path) -> None:
    from vq_jax.tasks.evaluate import evaluate

    evaluate(workdir)


def _reconstruct(workdir: Path) -> None:
    from vq_jax.tasks.reconstruct import reconstruct

    if not _INPUT.value or not _OUTPUT.value:
        raise UserError("reconstruct needs --input and --output, two files or two folders")
    reconstruct(
        workdir,
        input=Path(_INPUT.value),
        output=Path(_OUTPUT.value),
        side_by_side=_SIDE_BY_SIDE.value,
    )


MODES: dict[str, Callable[[Path], None]] = {
    "train": _train,
    "plan": _plan,
    "evaluate": _evaluate,
    "reconstruct": _reconstruct,
}


def _workdir() -> Path:
    if _WORKDIR.value:
        return Path(_WORKDIR.value)
    if _CONFIG.value is not None:
        name = config_flags.get_config_filename(flags.FLAGS["config"])
        file, _, variant = name.partition(".py:")
        parts = (Path(file).stem, *variant.split("/"))  # "residual/fsq" is one folder
        return Path("runs") / "-".join(filter(None, parts))
    return Path("runs/default")


def _main(_: list[str]) -> None:
    log = logging.getLogger("vq_jax")
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler())
    log.propagate = False
    absl_logging.set_verbosity(absl_logging.ERROR)
    if _MODE.value not in MODES:
        raise UserError(f"--mode={_MODE.value}: use one of {', '.join(MODES)}")
    MODES[_MODE.value](_workdir())


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags; what is wrong with them or with the config file is the user's one line."""
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, UserError) as e:
        raise UserError(str(e)) from e
    except Exception as e:  # whatever a config file, or a change to it, may raise
        raise UserError(_config_mistake(argv, e)) from e
    if len(rest) > 1:
        raise UserError(f"not a flag: {' '.join(rest[1:])}")
    try:
        if _CONFIG.value is not None:
            _CONFIG.value.keys()  # a file that could not be loaded says so only when it is used
    except Exception as e:
        raise UserError(_config_mistake(argv, e)) from e
    return rest


def _config_mistake(argv: list[str], e: Exception) -> str:
    """One line about what a config file, or a change to one of its fields, has raised."""
    place = next((a for a in argv if a.startswith("--config=")), "--config")
    text = str(e.args[0] if isinstance(e, KeyError) and e.args else e)
    text = " ".join(text.replace("\\n", " ").replace("\\", "").split()).strip('"')
    text = text.rpartition("Failed loading config file config_config ")[2]
    if unknown := re.match(r'Key "(\w+)" does not exist', text):
        known = re.findall(r"'(\w+)':", text)
        near = difflib.get_close_matches(unknown[1], known, cutoff=0.4)
        text = f"there is no field {unknown[1]!r}; near: {', '.join(near or known)}"
    elif hint := re.search(r"Did you mean .*instead of \"(\w+)\"\?", text):
        place = next((a for a in argv if f".{hint[1]}" in a), place)
        text = hint[0]
    elif isinstance(e, KeyError):
        text = f"there is no {text!r}"
    return f"{place}: {text or type(e).__name__}"


def main() -> None:
    """Runs the program; a user's mistake ends it with one line and exit code 2."""
    try:
        app.run(_main, flags_parser=_parse)
    except UserError as e:
        print(f"vq_jax: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("vq_jax: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()

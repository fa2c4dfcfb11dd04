"""The front door.

python -m vq_jax.main --config=configs/default.py
python -m vq_jax.main --mode=plan --config=configs/vqgan_imagenet256.py
python -m vq_jax.main --mode=evaluate --workdir=runs/default
python -m vq_jax.main --mode=reconstruct --workdir=runs/default --input=my.png --output=out.png
python -m vq_jax.main --mode=compress --workdir=runs/default --input=my.png --output=my.vqz
python -m vq_jax.main --mode=decompress --workdir=runs/default --input=my.vqz --output=out.png
python -m vq_jax.main --mode=tokenize --workdir=runs/default --output=codes
python -m vq_jax.main --mode=sample --workdir=runs/prior_default --label="Food & Drink"
python -m vq_jax.main --mode=import --input=vqgan.ckpt --workdir=runs/imported
python -m vq_jax.main --mode=export --workdir=runs/default --format=vq_jax --output=exported
python -m vq_jax.main --mode=inpaint --workdir=runs/prior_default --input=my.png --mask=mask.png \
    --output=out.png
"""

import difflib
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from vq_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "A file of configs/; its fields can be changed on the command line: --config.optim.lr=1e-4.",
)
_MODE = flags.DEFINE_string(
    "mode",
    "train",
    "What to do: train, plan, evaluate, reconstruct, compress, decompress, tokenize, sample, inpaint, "
    "outpaint, upscale, restore, variations, import or export.",
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run's folder; by default runs/ and the config file's name."
)
_INPUT = flags.DEFINE_string(
    "input",
    None,
    "A file, or a folder of files, such as images; import: a file of weights, or its folder.",
)
_OUTPUT = flags.DEFINE_string("output", None, "The file or folder to write.")
_SIDE_BY_SIDE = flags.DEFINE_bool("side_by_side", False, "reconstruct: the original to the left.")
_ENTROPY = flags.DEFINE_enum(
    "entropy",
    None,
    ["fixed", "static", "prior"],
    "compress: how codes are coded; by default as short as can be without a prior, or by the prior.",
)
_QUALITY = flags.DEFINE_integer(
    "quality", None, "compress: how many levels of a residual tokenizer to keep, from 1; all."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "train: one process of many, by jax.distributed and the cluster's settings.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "distributed: HOST:PORT of process 0, where the cluster does not say."
)
_PROCESSES = flags.DEFINE_integer(
    "processes", None, "distributed: how many, likewise; tokenize: how many share the work."
)
_PROCESS = flags.DEFINE_integer("process", None, "distributed, tokenize: which of them, from 0.")
_DEVICE = flags.DEFINE_string("device", "", "plan: a TPU to compile for, such as tpu-v5e.")
_DEVICES = flags.DEFINE_integer("devices", 1, "plan: how many devices share the batch.")
_SHARE = flags.DEFINE_float("share", 0.4, "plan: the share of a device's peak that is reached.")
_PROFILE = flags.DEFINE_bool("profile", False, "train: write a trace of ten steps.")
_FLIPS = flags.DEFINE_bool("flips", False, "tokenize: training images mirrored, too.")
_CROPS = flags.DEFINE_integer("crops", 0, "tokenize: random crops of each training image.")

# Of priors; what is not given is as the prior's config says.
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "The tokenizer's run, where it is elsewhere than the prior's config says."
)
_FORMAT = flags.DEFINE_string(
    "format",
    None,
    "export: diffusers, taming, vq_jax or stablehlo; import: whose weights, where it is not told "
    "by their names.",
)
_INCEPTION = flags.DEFINE_string(
    "inception", "", "evaluate: the file of FID's Inception weights, or 'download'; then with FID."
)
_PROTOCOL = flags.DEFINE_string("protocol", "adm", "evaluate: how FID sees images, adm or clean.")
_CLASSES = flags.DEFINE_integer(
    "classes", 0, "import of taming's transformer: how many classes it is conditioned on."
)
_HEADS = flags.DEFINE_integer(
    "heads", None, "import of taming's transformer: its attention heads, n_head in its yaml."
)
_RESOLUTION = flags.DEFINE_integer(
    "resolution", None, "import: of the images it was trained on, where nothing else says; 256."
)
_COUNT = flags.DEFINE_integer(
    "count", None, "sample: images, of each label; variations: how many (16 and 4)."
)
_LABEL = flags.DEFINE_multi_string("label", [], "A class by name or number; sample takes several.")
_SEED = flags.DEFINE_integer("seed", 0, "Decides all that is drawn.")
_CANDIDATES = flags.DEFINE_integer("candidates", 1, "Draw so many, and keep the likeliest.")
_MASK = flags.DEFINE_string("mask", "", "inpaint: an image, white where to draw.")
_MARGINS = flags.DEFINE_string("margins", "", "outpaint: pixels to add: top,right,bottom,left.")
_FACTOR = flags.DEFINE_integer("factor", None, "upscale: how many times larger; the prior's own.")
_OF_CODES = flags.DEFINE_float("redraw", 0.5, "variations: share of the codes to draw anew.")
_HOW = {
    "temperature": flags.DEFINE_float("temperature", None, "Of the draw; 0 takes the likeliest."),
    "top_k": flags.DEFINE_integer("top_k", None, "Draw from so many of the likeliest codes."),
    "top_p": flags.DEFINE_float(
        "top_p", None, "Draw from the likeliest codes of this probability."
    ),
    "min_p": flags.DEFINE_float("min_p", None, "Draw from codes this likely beside the likeliest."),
    "guidance": flags.DEFINE_float("guidance", None, "Weight of the label; 1 is plain."),
    "guidance_schedule": flags.DEFINE_enum(
        "guidance_schedule", None, ["constant", "linear", "cosine"], "How guidance grows."
    ),
    "steps": flags.DEFINE_integer("steps", None, "Of a masked prior."),
    "choice_temperature": flags.DEFINE_float(
        "choice_temperature", None, "Of a masked prior: chance in which codes are settled first."
    ),
    "order": flags.DEFINE_enum(
        "order", None, ["confidence", "halton"], "Of a masked prior: which codes first."
    ),
}


def _train(workdir: Path) -> None:
    from vq_jax import config as configs
    from vq_jax.tasks.train import train
    from vq_jax.training import parallel

    if _CONFIG.value is None:
        raise UserError("training needs --config=configs/NAME.py")
    if configs.is_prior(_CONFIG.value):
        parallel.keep_memory()
    if _DISTRIBUTED.value:
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
    if configs.is_prior(config):
        raise UserError("plan counts a tokenizer's step: name a tokenizer's config or --workdir")
    plan(config, devices=_DEVICES.value, share=_SHARE.value, device=_DEVICE.value)


def _evaluate(workdir: Path) -> None:
    from vq_jax import config as configs
    from vq_jax.tasks.evaluate import evaluate
    from vq_jax.tasks.evaluate_prior import evaluate_prior

    if flags.FLAGS["protocol"].present and not _INCEPTION.value:
        raise UserError(
            "--protocol is FID's: it needs --inception, its weights' file or 'download'"
        )
    how = {"inception": _INCEPTION.value, "protocol": _PROTOCOL.value}
    if configs.holds_prior(workdir):
        evaluate_prior(workdir, _tokenizer(), _data(codes=True), **how, count=_COUNT.value)
    elif _TOKENIZER.value or _COUNT.value:
        raise UserError(f"--tokenizer and --count are for priors: {workdir} holds a tokenizer")
    else:
        evaluate(workdir, _data(), **how)


def _reconstruct(workdir: Path) -> None:
    from vq_jax.tasks.reconstruct import reconstruct

    reconstruct(workdir, **_files(), side_by_side=_SIDE_BY_SIDE.value)


def _compress(workdir: Path) -> None:
    from vq_jax.tasks.compress import compress
    from vq_jax.training import parallel

    parallel.keep_memory()
    compress(
        workdir,
        tokenizer=_tokenizer(),
        **_files(),
        entropy=_ENTROPY.value,
        quality=_QUALITY.value,
        data=_data(),
    )


def _decompress(workdir: Path) -> None:
    from vq_jax.tasks.compress import decompress
    from vq_jax.training import parallel

    parallel.keep_memory()
    decompress(workdir, tokenizer=_tokenizer(), **_files())


def _files() -> dict[str, Path]:
    if not _INPUT.value or not _OUTPUT.value:
        raise UserError(f"{_MODE.value} needs --input and --output, two files or two folders")
    return {"input": Path(_INPUT.value), "output": Path(_OUTPUT.value)}


def _tokenizer() -> Path | None:
    return Path(_TOKENIZER.value) if _TOKENIZER.value else None


def _data(*, codes: bool = False) -> Any:
    """The section `data` of --config, which names other images than the run's own; or None.

    Args:
      codes: whether it may be of codes.
    """
    from vq_jax import config as configs

    if _CONFIG.value is None:
        return None
    configs.check(_CONFIG.value)
    if _CONFIG.value.data.source == "codes" and not codes:
        raise UserError(f"{_MODE.value} takes images: name a data.source of images")
    return _CONFIG.value.data


def _tokenize(workdir: Path) -> None:
    from vq_jax.tasks.tokenize import tokenize

    if not _OUTPUT.value:
        raise UserError("tokenize needs --output, the folder of the data set")
    tokenize(
        Path(_WORKDIR.value or "runs/default"),
        output=Path(_OUTPUT.value),
        data=_data(),
        flips=_FLIPS.value,
        crops=_CROPS.value,
        process=_PROCESS.value or 0,
        processes=_PROCESSES.value or 1,
    )


def _drawing() -> dict[str, Any]:
    """How to draw, as far as flags say."""
    given = {name: flag.value for name, flag in _HOW.items() if flag.value is not None}
    return {"seed": _SEED.value, "candidates": _CANDIDATES.value, **given}


def _sample(workdir: Path) -> None:
    from vq_jax.tasks.sample import sample

    sample(
        workdir,
        tokenizer=_tokenizer(),
        output=Path(_OUTPUT.value) if _OUTPUT.value else workdir / "samples",
        count=16 if _COUNT.value is None else _COUNT.value,
        labels=_LABEL.value,
        **_drawing(),
    )


def _edit(workdir: Path) -> None:
    from vq_jax.tasks.edit import edit

    if len(_LABEL.value) > 1:
        raise UserError(f"--label is given {len(_LABEL.value)} times: {_MODE.value} takes one")
    edit(
        _MODE.value,
        workdir,
        tokenizer=_tokenizer(),
        **_files(),
        mask=_MASK.value,
        margins=_MARGINS.value,
        factor=_FACTOR.value,
        share=_OF_CODES.value,
        count=4 if _COUNT.value is None else _COUNT.value,
        label=_LABEL.value[0] if _LABEL.value else None,
        **_drawing(),
    )


def _import(workdir: Path) -> None:
    from vq_jax.tasks.import_weights import import_weights

    if not _INPUT.value:
        raise UserError("import needs --input, a file of weights or a folder with one")
    import_weights(
        Path(_INPUT.value),
        Path(_WORKDIR.value or "runs/imported"),
        format=_FORMAT.value,
        tokenizer=_tokenizer(),
        classes=_CLASSES.value,
        heads=_HEADS.value,
        resolution=_RESOLUTION.value,
    )


def _export(workdir: Path) -> None:
    from vq_jax.tasks.export import FORMATS, export

    if not _OUTPUT.value or not _FORMAT.value:
        raise UserError(f"export needs --output, a folder, and --format: {', '.join(FORMATS)}")
    export(workdir, Path(_OUTPUT.value), _FORMAT.value)


MODES: dict[str, Callable[[Path], None]] = {
    "train": _train,
    "plan": _plan,
    "evaluate": _evaluate,
    "reconstruct": _reconstruct,
    "compress": _compress,
    "decompress": _decompress,
    "tokenize": _tokenize,
    "sample": _sample,
    "inpaint": _edit,
    "outpaint": _edit,
    "upscale": _edit,
    "restore": _edit,
    "variations": _edit,
    "import": _import,
    "export": _export,
}


_DRAWN = {"seed", "candidates", "label", "tokenizer", *_HOW}
_EDITED = {"input", "output", *_DRAWN}
# mode -> the flags it reads, besides mode, config and workdir
_READS: dict[str, set[str]] = {
    "train": {"distributed", "coordinator", "processes", "process", "profile"},
    "plan": {"device", "devices", "share"},
    "evaluate": {"tokenizer", "inception", "protocol", "count"},
    "reconstruct": {"input", "output", "side_by_side"},
    "compress": {"input", "output", "tokenizer", "entropy", "quality"},
    "decompress": {"input", "output", "tokenizer"},
    "tokenize": {"output", "flips", "crops", "process", "processes"},
    "sample": {"output", "count", *_DRAWN},
    "inpaint": {"mask", *_EDITED},
    "outpaint": {"margins", *_EDITED},
    "upscale": {"factor", *_EDITED},
    "restore": _EDITED,
    "variations": {"redraw", "count", *_EDITED},
    "import": {"input", "format", "tokenizer", "classes", "heads", "resolution"},
    "export": {"output", "format"},
}


def _check_flags(mode: str) -> None:
    """Refuses a flag that the mode would not look at."""
    for name in sorted(set().union(*_READS.values()) - _READS[mode]):
        if flags.FLAGS[name].present:
            instead = "it does at " + ", ".join(f"--{n}" for n in sorted(_READS[mode]))
            if (mode, name) == ("tokenize", "input"):
                instead = (
                    "a folder's images are --config=configs/default.py "
                    "--config.data.source=folder --config.data.folder=PATH"
                )
            raise UserError(f"--mode={mode} does not look at --{name}; {instead}")


def _workdir() -> Path:
    if _WORKDIR.value:
        return Path(_WORKDIR.value)
    if _CONFIG.value is not None:
        name = config_flags.get_config_filename(flags.FLAGS["config"])
        file, _, variant = name.partition(".py:")
        parts = (Path(file).stem, *variant.split("/"))  # "residual/fsq" is one folder
        return Path("runs") / "-".join(filter(None, parts))
    priors = ("sample", "inpaint", "outpaint", "variations")
    known = {"upscale": "prior_upscale", "restore": "prior_restore"}
    known |= dict.fromkeys(priors, "prior_default")
    return Path("runs") / known.get(_MODE.value, "default")


def _main(_: list[str]) -> None:
    log = logging.getLogger("vq_jax")
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler())
    log.propagate = False
    absl_logging.set_verbosity(absl_logging.ERROR)
    if _MODE.value not in MODES:
        raise UserError(f"--mode={_MODE.value}: use one of {', '.join(MODES)}")
    _check_flags(_MODE.value)
    MODES[_MODE.value](_workdir())


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags; what is wrong with them or with the config file is the user's one line."""
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, UserError) as e:
        text = str(e)
        if "flag 'config." in text:
            text = f"{text.split('. Did you')[0]}: a config's fields need --config=FILE before them"
        raise UserError(text) from e
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
    elif field := re.fullmatch(r"'(\w+)'", text):
        place = next((a for a in argv if f".{field[1]}" in a), place)
        text = f"there is no field {text}"
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
        goes_on = "; the same command goes on from the last checkpoint"
        print("vq_jax: stopped" + goes_on * (_MODE.value == "train"), file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()

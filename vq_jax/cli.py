"""The command line: every command and every flag as data, from which all else derives.

`COMMANDS` has a row for each `--mode`, `FLAGS` one for each flag. Parsing, help, the refusal of a flag
that a command does not look at, and the call of the command's function follow from these two tables.
A flag that is not given is not passed on: the function's own default holds. Nothing here imports JAX.
"""

import dataclasses
import difflib
import importlib
import logging
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from vq_jax import files
from vq_jax.errors import UserError
from vq_jax.recipes import recipes

# Exit codes: a mistake of the user's or of the system's, and Ctrl-C.
MISTAKE, INTERRUPTED = 2, 130


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag.

    Attributes:
      kind: "path", "text", "texts" (may be repeated), "int", "float", "switch", or the values it takes.
      about: what it does, and what holds without it.
    """

    kind: str | tuple[str, ...]
    about: str


@dataclasses.dataclass(frozen=True)
class Command:
    """What a `--mode` does.

    Attributes:
      target: "module:function" below `vq_jax.tasks`, called with `workdir` and with what flags say.
      about: one line for the list of commands.
      example: the flags of a typical call.
      flags: flag -> the function's keyword; those that it does not name are refused.
      needs: flags that must be given.
      config: what --config is: "run" (the function's `config`), "data" (its section `data`), "name"
        (it only names the run), or "" (it is refused).
      workdir: the run's folder, where neither --workdir nor --config says.
      fixed: keywords that are always passed.
      about_flags: what flags do here, where it is other than what `FLAGS` says.
    """

    target: str
    about: str
    example: str
    flags: Mapping[str, str]
    needs: tuple[str, ...] = ()
    config: str = "name"
    workdir: str = "runs/default"
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    about_flags: Mapping[str, str] = dataclasses.field(default_factory=dict)


FLAGS: dict[str, Flag] = {
    "input": Flag("path", "A file, or a folder of files; '-' is standard input."),
    "output": Flag("path", "The file or folder to write; '-' is standard output."),
    "side_by_side": Flag("switch", "Put the original to the left of the reconstruction."),
    "entropy": Flag(
        ("fixed", "static", "prior"),
        "How codes are coded; by default by the prior where there is one, else the shorter.",
    ),
    "quality": Flag("int", "How many levels of a residual tokenizer to keep, from 1; all."),
    "distributed": Flag("switch", "This is one process of many, by the cluster's settings."),
    "coordinator": Flag("text", "HOST:PORT of process 0, where the cluster does not say."),
    "processes": Flag("int", "How many processes share the work."),
    "process": Flag("int", "Which of them this is, from 0."),
    "device": Flag("text", "A device of the table to compile for, such as tpu-v5e."),
    "devices": Flag("int", "How many devices share the batch; 1."),
    "share": Flag("float", "The share of a device's peak that is reached; .4."),
    "profile": Flag("switch", "Write a trace of ten steps."),
    "flips": Flag("switch", "Training images mirrored, too."),
    "crops": Flag("int", "Random crops of each training image in place of its centre; 0."),
    "tokenizer": Flag("path", "The tokenizer's run, where the prior's config names another place."),
    "format": Flag("text", "Whose weights they are, where their names do not tell it."),
    "inception": Flag("path", "The file of FID's Inception weights, or 'download'; adds FID."),
    "protocol": Flag("text", "How FID sees images, adm or clean; adm."),
    "classes": Flag("int", "How many classes taming's transformer is conditioned on; 0."),
    "heads": Flag("int", "Attention heads of taming's transformer, n_head in its yaml."),
    "sos_token": Flag("int", "Start token of taming's transformer, sos_token in its yaml; 0."),
    "resolution": Flag("int", "Of the images it was trained on, where nothing else says; 256."),
    "count": Flag("int", "How many are drawn; 4."),
    "label": Flag("texts", "A class by name or number."),
    "seed": Flag("int", "Decides all that is drawn; 0."),
    "candidates": Flag("int", "Draw so many, and keep the likeliest; 1."),
    "mask": Flag("path", "An image, white where to draw; of a picture with holes, the holes."),
    "margins": Flag("text", "Pixels to add: top,right,bottom,left, or one number."),
    "factor": Flag("int", "How many times larger; the prior's own."),
    "redraw": Flag("float", "Share of the codes to draw anew; .5."),
    "temperature": Flag("float", "Of the draw; 0 takes the likeliest."),
    "top_k": Flag("int", "Draw from so many of the likeliest codes."),
    "top_p": Flag("float", "Draw from the likeliest codes of this probability."),
    "min_p": Flag("float", "Draw from codes this likely beside the likeliest."),
    "guidance": Flag("float", "Weight of the label; 1 is plain."),
    "guidance_schedule": Flag(("constant", "linear", "cosine"), "How guidance grows."),
    "steps": Flag("int", "Of a masked prior."),
    "choice_temperature": Flag("float", "Of a masked prior: chance in which codes come first."),
    "order": Flag(("confidence", "halton"), "Of a masked prior: which codes first."),
}

# Flags that mean the same in several commands, by their keywords.
_TOKENIZER = {"tokenizer": "tokenizer"}
_PAIR = {"input": "input", "output": "output"}
_DRAW = {
    name: name
    for name in (
        "seed", "candidates", "temperature", "top_k", "top_p", "min_p", "guidance",
        "guidance_schedule", "steps", "choice_temperature", "order",
    )
}  # fmt: skip
_SPREAD = {"processes": "processes", "process": "process"}


_FOLDER = {"output": "The folder to write."}


def _edit(
    name: str,
    about: str,
    more: str = "",
    workdir: str = "runs/prior_default",
    needs: tuple[str, ...] = (),
    **flags: str,
) -> Command:
    """The row of an edit: a command from image to image through a prior."""
    return Command(
        "edit:edit",
        about,
        f"--input=my.png --output=out.png{more}",
        {**_PAIR, **flags, "label": "label", **_TOKENIZER, **_DRAW},
        needs=("input", "output", *needs),
        workdir=workdir,
        fixed={"name": name},
    )


COMMANDS: dict[str, Command] = {
    "train": Command(
        "train:train",
        "train a tokenizer or a prior, from its newest checkpoint or from the start",
        "--config=default",
        {"profile": "profile", "distributed": "distributed", "coordinator": "coordinator", **_SPREAD},
        needs=("config",),
        config="run",
    ),
    "evaluate": Command(
        "evaluate:evaluate",
        "measure a run on its held-out split",
        "--workdir=runs/default",
        {
            "inception": "inception", "protocol": "protocol", "count": "count", "seed": "seed",
            **_TOKENIZER,
        },
        config="data",
        about_flags={
            "count": "Of a prior: how many samples FID gets; the config's eval_samples.",
            "seed": "Of a prior: decides which samples are drawn; 0.",
        },
    ),
    "plan": Command(
        "plan:plan",
        "what a config costs: parameters, FLOPs, memory, images/s by device",
        "--config=vqgan_imagenet256 --devices=8",
        {"device": "device", "devices": "devices", "share": "share"},
        config="run",
    ),
    "reconstruct": Command(
        "reconstruct:reconstruct",
        "send images of any size through a tokenizer",
        "--workdir=runs/default --input=my.png --output=out.png --side_by_side",
        {**_PAIR, "side_by_side": "side_by_side"},
        needs=("input", "output"),
    ),
    "compress": Command(
        "compress:compress",
        "write images as .vqz files",
        "--workdir=runs/default --input=my.png --output=my.vqz",
        {**_PAIR, **_TOKENIZER, "entropy": "entropy", "quality": "quality"},
        needs=("input", "output"),
        config="data",
    ),
    "decompress": Command(
        "compress:decompress",
        "read .vqz files back",
        "--workdir=runs/default --input=my.vqz --output=out.png",
        {**_PAIR, **_TOKENIZER},
        needs=("input", "output"),
    ),
    "tokenize": Command(
        "tokenize:tokenize",
        "write a data set's codes, to train priors from",
        "--workdir=runs/default --output=codes --flips",
        {"output": "output", "flips": "flips", "crops": "crops", **_SPREAD},
        needs=("output",),
        config="data",
        about_flags=_FOLDER,
    ),
    "sample": Command(
        "sample:sample",
        "draw images from a prior, by class",
        "--workdir=runs/prior_default --label='Food & Drink' --count=8",
        {"output": "output", "count": "count", "label": "labels", **_TOKENIZER, **_DRAW},
        workdir="runs/prior_default",
        about_flags={
            "output": "The folder to write; samples in the run's folder.",
            "count": "How many images are drawn, of each label; 16.",
            "label": "A class by name or number; may be repeated.",
        },
    ),
    "inpaint": _edit("inpaint", "draw where a mask says", " --mask=mask.png", needs=("mask",), mask="mask"),
    "outpaint": _edit(
        "outpaint", "draw beyond an image's edges", " --margins=0,16,0,16", needs=("margins",),
        margins="margins",
    ),
    "upscale": _edit("upscale", "enlarge images", workdir="runs/prior_upscale", factor="factor"),
    "restore": _edit(
        "restore", "free images of noise, blur, JPEG and bad light", workdir="runs/prior_restore"
    ),
    "variations": _edit(
        "variations",
        "draw a share of an image's codes anew: the image and its variations, in a row",
        " --redraw=0.5",
        redraw="share",
        count="count",
    ),
    "import": Command(
        "import_weights:import_weights",
        "bring weights of another codebase into a run's folder",
        "--input=vqgan.ckpt --workdir=runs/imported",
        {
            "input": "input", "format": "format", "classes": "classes", "heads": "heads",
            "sos_token": "sos_token", "resolution": "resolution", **_TOKENIZER,
        },
        needs=("input",),
        config="",
        workdir="runs/imported",
        about_flags={"input": "A file of weights, or a folder with one."},
    ),
    "export": Command(
        "export:export",
        "hand a run on: to diffusers, to taming, as one folder of ours, as programs",
        "--workdir=runs/default --format=vq_jax --output=exported",
        {"output": "output", "format": "format"},
        needs=("output", "format"),
        about_flags=_FOLDER
        | {"format": "diffusers, taming, vq_jax (a folder of ours) or stablehlo (programs)."},
    ),
    "list": Command(
        "list_runs:list_runs",
        "show the recipes, and the runs with their figures",
        "",
        {},
        config="",
        workdir="runs",
    ),
}  # fmt: skip

# Config fields that hold a path; a leading ~ in them is the user's home.
_PATH_FIELDS = ("data.folder", "data.dir", "tokenizer", "start_from")
_HELP = frozenset(["--help", "-help", "-h", "--helpfull", "--helpshort"])


# --- names of recipes -------------------------------------------------------------------------------


def _found(argv: Sequence[str]) -> list[str]:
    """The arguments with a recipe's file in place of its bare name, as in --config=default:fsq."""
    result = list(argv)
    for i, argument in enumerate(result):
        if argument in ("--config", "-config") and i + 1 < len(result):
            result[i + 1] = _file_of(result[i + 1])
        elif found := re.match(r"(--?config=)(.*)", argument):
            result[i] = found[1] + _file_of(found[2])
    return result


def _file_of(config: str) -> str:
    name, colon, variant = config.partition(":")
    if re.fullmatch(r"\w+", name):
        known = recipes()
        if name not in known:
            near = difflib.get_close_matches(name, known, cutoff=0.4) or [*known]
            raise UserError(
                f"--config={config}: there is no recipe {name!r}; near: {', '.join(near)} "
                "(a file of your own is named by its path, ./NAME.py)"
            )
        return str(known[name]) + colon + variant
    name = os.path.expanduser(name)
    if not os.path.isfile(name):
        raise UserError(f"--config={config}: there is no file {name}")
    if not name.endswith(".py"):
        raise UserError(f"--config={config}: a config file is Python, NAME.py")
    return name + colon + variant


# --- parsing ----------------------------------------------------------------------------------------


def _define(argv: Sequence[str]) -> Any:
    """All flags, as absl's FlagValues of this call alone."""
    from absl import flags
    from ml_collections import config_flags

    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=list(argv))
    flags.DEFINE_string("mode", "train", "", flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    for name, flag in FLAGS.items():
        if isinstance(flag.kind, tuple):
            flags.DEFINE_enum(name, None, list(flag.kind), "", flag_values=values)
            continue
        define: Any = {
            "path": flags.DEFINE_string,
            "text": flags.DEFINE_string,
            "texts": flags.DEFINE_multi_string,
            "int": flags.DEFINE_integer,
            "float": flags.DEFINE_float,
            "switch": flags.DEFINE_bool,
        }[flag.kind]
        define(name, None, "", flag_values=values)
    return values


def _parse(argv: Sequence[str]) -> Any:
    """Parses the flags; what is wrong with them or with the config file is the user's one line."""
    from absl import flags

    found = _found(argv)
    values = _define(found)
    try:
        rest = values(found)
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
        if values.config is not None:
            values.config.keys()  # a file that could not be loaded says so only when it is used
    except Exception as e:
        raise UserError(_config_mistake(argv, e)) from e
    return values


def _config_mistake(argv: Sequence[str], e: Exception) -> str:
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


def _command(mode: str) -> Command:
    if mode not in COMMANDS:
        near = difflib.get_close_matches(mode, COMMANDS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"--mode={mode}: use one of {', '.join(COMMANDS)}{hint}")
    return COMMANDS[mode]


def _check_flags(mode: str, command: Command, values: Any) -> None:
    """Refuses a flag that the command would not look at, and the lack of one that it needs."""
    for name in sorted(FLAGS.keys() - command.flags.keys()):
        if values[name].present:
            instead = "it does at " + ", ".join(f"--{n}" for n in sorted(command.flags))
            if (mode, name) == ("tokenize", "input"):
                instead = (
                    "a folder's images are --config=default --config.data.source=folder "
                    "--config.data.folder=PATH"
                )
            if not command.flags:
                instead = "it takes no such flags"
            raise UserError(f"--mode={mode} does not look at --{name}; {instead}")
    if values.config is not None and not command.config:
        raise UserError(f"--mode={mode} does not look at --config")
    missing = [f"--{name}" for name in command.needs if values[name].value in (None, "")]
    if missing:
        raise UserError(
            f"{mode} needs {' and '.join(f'--{n}' for n in command.needs)}, as in: --mode={mode} "
            f"{command.example}"
        )


def _workdir(command: Command, values: Any) -> Path:
    if values.workdir:
        return files.expanded(values.workdir)
    if values.config is None:
        return Path(command.workdir)
    from ml_collections import config_flags

    name = config_flags.get_config_filename(values["config"])
    file, _, variant = name.partition(".py:")
    parts = (Path(file).stem, *variant.split("/"))  # "residual/fsq" is one folder
    return Path("runs") / "-".join(filter(None, parts))


def _config(config: Any) -> Any:
    """The config with ~ expanded in its paths."""
    for place in _PATH_FIELDS:
        section, _, field = place.rpartition(".")
        holder = config.get(section) if section else config
        if not hasattr(holder, "get"):
            raise UserError(f"--config: its {section} is no section: make the config by base()")
        text = holder.get(field)
        if isinstance(text, str) and text.startswith("~"):
            holder[field] = os.path.expanduser(text)
    return config


def _arguments(command: Command, values: Any) -> dict[str, Any]:
    """The keywords that a command's function is called with."""
    arguments: dict[str, Any] = {"workdir": _workdir(command, values), **command.fixed}
    for name, keyword in command.flags.items():
        if values[name].value is not None:
            value = values[name].value
            is_path = FLAGS[name].kind == "path"
            if is_path and not value:
                raise UserError(f"--{name} is empty")
            if is_path and value == str(files.STDIO) and name in command.about_flags:
                raise UserError(f"--{name}=-: this command takes no standard streams")
            arguments[keyword] = files.expanded(value) if is_path else value
    if values.config is not None and command.config in ("run", "data"):
        config = _config(values.config)
        if command.config == "run":
            arguments["config"] = config
        else:
            from vq_jax.config import check

            check(config)
            arguments["data"] = config.data
    return arguments


# --- help -------------------------------------------------------------------------------------------


def _mode_of(argv: Sequence[str]) -> str | None:
    """What --mode is given as, before flags are parsed."""
    for i, argument in enumerate(argv):
        if found := re.fullmatch(r"--?mode(?:=(.*))?", argument):
            return found[1] if found[1] is not None else next(iter(argv[i + 1 :]), None)
    return None


def _help(argv: Sequence[str]) -> str:
    """What --help shows: the commands, or one command's flags."""
    mode = _mode_of(argv)
    program = "python -m vq_jax.main"
    if mode is None:
        width = max(map(len, COMMANDS))
        lines = [f"usage: {program} --mode=COMMAND [flags]", "", "commands:"]
        lines += [f"  {name:<{width}}  {command.about}" for name, command in COMMANDS.items()]
        lines += ["", f"{program} --mode=COMMAND --help shows a command's flags."]
        lines += ["Without --mode it is train.", "", "recipes (--config=NAME):"]
        lines += [f"  {', '.join(recipes())}"]
        return "\n".join(lines)
    command = _command(mode)
    about_config = {
        "run": "a recipe's name, or a config file; --config.FIELD=VALUE changes a field",
        "data": "a recipe or config file whose section `data` names other images than the run's",
        "name": "a recipe whose run is meant, in place of --workdir",
    }
    rows = [("workdir", f"the run's folder ({command.workdir}, or by the name of --config)")]
    if command.config:
        rows.append(("config", about_config[command.config]))
    else:
        rows = [("workdir", f"the folder ({command.workdir})")]
    rows += [(n, command.about_flags.get(n, FLAGS[n].about)) for n in command.flags]
    width = max(len(name) for name, _ in rows)
    lines = [
        f"{mode}: {command.about}",
        "",
        f"  {program} --mode={mode} {command.example}".rstrip(),
    ]
    lines += ["", "flags:"]
    for name, about in rows:
        kind = FLAGS[name].kind if name in FLAGS else ""
        choices = f" ({', '.join(kind)})" if isinstance(kind, tuple) else ""
        about = about if about.endswith(".") else f"{about}."
        needed = " Needed." if name in command.needs else ""
        lines.append(f"  --{name:<{width}}  {about}{choices}{needed}")
    return "\n".join(lines)


# --- running ----------------------------------------------------------------------------------------


def main(argv: Sequence[str]) -> int:
    """Runs one command; it may be called any number of times in one process.

    Args:
      argv: the program's name and its arguments, as `sys.argv`.

    Returns:
      the exit code: 0, 2 after a mistake, which is told in one line, or 130 after Ctrl-C.
    """
    log = logging.getLogger("vq_jax")
    handler = logging.StreamHandler()
    before = log.level, log.propagate
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    log.propagate = False
    try:
        if _HELP.intersection(argv[1:]):
            print(_help(argv))
            return 0
        values = _parse(argv)
        command = _command(values.mode)
        _check_flags(values.mode, command, values)
        _run(command, values)
        return 0
    except UserError as e:
        _say(f"vq_jax: {e}")
        return MISTAKE
    except BrokenPipeError:  # whoever read the output has gone
        return MISTAKE
    except KeyboardInterrupt as e:
        if not any(e.args):  # otherwise what it stopped has said so
            _say("vq_jax: stopped")
        return INTERRUPTED
    except Exception as e:
        if (text := files.system_mistake(e)) is None:
            raise
        _say(f"vq_jax: {text}")
        return MISTAKE
    finally:
        log.removeHandler(handler)
        log.level, log.propagate = before


def _run(command: Command, values: Any) -> None:
    module, _, function = command.target.partition(":")
    from absl import logging as absl_logging

    # Libraries log with a traceback what they raise as well.
    absl_logging.set_verbosity(absl_logging.FATAL)
    arguments = _arguments(command, values)
    target = getattr(importlib.import_module(f"vq_jax.tasks.{module}"), function)
    if "jax" in sys.modules:
        from vq_jax.training.parallel import keep_compiled

        keep_compiled()
    target(**arguments)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run() -> None:
    """The program: `main` for this process's own arguments, streams and signals."""
    signal.signal(signal.SIGINT, _stop)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal or locale that lacks a name's letters
            stream.reconfigure(errors="backslashreplace")
    code = main(sys.argv)
    # All is written: what comes while Python itself ends would only spoil the exit code.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def _stop(signum: int, frame: FrameType | None) -> None:
    """Ends the process at Ctrl-C, wherever it is.

    An exception could be lost in a callback, and an orderly end would take down threads that are at
    work in compiled code. What is written takes its name when it is whole, and training saves by
    itself (`parallel.Preemption`): there is nothing to save here.
    """
    files.discard_unfinished()
    if "multiprocessing" in sys.modules:  # workers that decode: they ignore the signal
        for worker in sys.modules["multiprocessing"].active_children():
            worker.kill()
    for stream in (1, 2):
        if os.isatty(stream):
            os.write(stream, b"\x1b[?25h")  # a progress bar hides the cursor
    training = _mode_of(sys.argv) in (None, "train")
    goes_on = "; the same command goes on from its last checkpoint, or starts again"
    os.write(2, f"\nvq_jax: stopped{goes_on * training}\n".encode())
    os._exit(INTERRUPTED)

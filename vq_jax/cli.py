"""The command line: parses the flags, shows help, and runs the command of `--mode`.

The commands and flags are the tables in `commands`. Parsing, help, the rejection of flags that a
command does not take, and the call of the command's function follow from these tables. This module
does not import JAX.
"""

import difflib
import importlib
import logging
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from vq_jax import files
from vq_jax.commands import COMMANDS, FLAGS, Command
from vq_jax.errors import UserError
from vq_jax.recipes import recipes

# Exit codes: for an error of the user or the operating system, and for Ctrl-C.
ERROR, INTERRUPTED = 2, 130

_PROGRAM = "python -m vq_jax.main"
# Config fields that hold a path, in which a leading ~ is expanded.
_PATH_FIELDS = ("data.folder", "data.dir", "tokenizer", "start_from")
_HELP_FLAGS = frozenset(["--help", "-help", "-h", "--helpfull", "--helpshort"])


# --- names of recipes -----------------------------------------------------------------------------


def _with_recipe_files(argv: Sequence[str]) -> list[str]:
    """Replaces names of recipes, as in --config=default:fsq, by the paths of their files."""
    result = list(argv)
    for i, argument in enumerate(result):
        if argument in ("--config", "-config") and i + 1 < len(result):
            result[i + 1] = _config_file(result[i + 1])
        elif match := re.match(r"(--?config=)(.*)", argument):
            result[i] = match[1] + _config_file(match[2])
    return result


def _config_file(config: str) -> str:
    """Returns the path that --config names, with its variant after a colon.

    Raises:
      UserError: there is no such recipe or file.
    """
    name, colon, variant = config.partition(":")
    if re.fullmatch(r"\w+", name):
        known = recipes()
        if name not in known:
            similar = difflib.get_close_matches(name, known, cutoff=0.4) or [*known]
            raise UserError(
                f"--config={config}: there is no recipe {name!r}; similar names: "
                f"{', '.join(similar)} (give the path of your own file, as in ./NAME.py)"
            )
        return str(known[name]) + colon + variant
    name = os.path.expanduser(name)
    if not os.path.isfile(name):
        raise UserError(f"--config={config}: there is no file {name}")
    if not name.endswith(".py"):
        raise UserError(f"--config={config}: give a Python config file, NAME.py")
    return name + colon + variant


# --- parsing --------------------------------------------------------------------------------------


def _define_flags(argv: Sequence[str]) -> Any:
    """Defines all flags in a new `absl.flags.FlagValues`, separate from absl's global one."""
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
    """Parses the flags.

    Returns:
      an `absl.flags.FlagValues`.

    Raises:
      UserError: a flag or the config file is wrong; the text is one line.
    """
    from absl import flags

    argv_with_files = _with_recipe_files(argv)
    values = _define_flags(argv_with_files)
    try:
        rest = values(argv_with_files)
    except (flags.Error, UserError) as e:
        text = str(e)
        if "Traceback" in text:  # of a config file
            raise UserError(_config_error(argv, ValueError(text.strip().splitlines()[-1]))) from e
        if "flag 'config." in text:
            text = f"{text.split('. Did you')[0]}: a config's fields need --config=FILE before them"
        raise UserError(text) from e
    except Exception as e:  # A config file, or a change to a field, may raise anything.
        raise UserError(_config_error(argv, e)) from e
    if len(rest) > 1:
        raise UserError(f"not a flag: {' '.join(rest[1:])}")
    try:
        if values.config is not None:
            values.config.keys()  # If the file could not be loaded, the first access raises.
    except Exception as e:
        raise UserError(_config_error(argv, e)) from e
    return values


def _config_error(argv: Sequence[str], e: Exception) -> str:
    """Describes in one line what a config file, or a change to one of its fields, has raised."""
    place = next((a for a in argv if a.startswith("--config=")), "--config")
    text = str(e.args[0] if isinstance(e, KeyError) and e.args else e)
    text = " ".join(text.replace("\\n", " ").replace("\\", "").split()).strip('"')
    text = text.rpartition("Failed loading config file config_config ")[2]
    if "get_config() takes 0 positional arguments" in text:
        text = "this recipe has no variants: leave out what follows the colon"
    if unknown := re.match(r'Key "(\w+)" does not exist', text):
        known = re.findall(r"'(\w+)':", text)
        similar = difflib.get_close_matches(unknown[1], known, cutoff=0.4)
        text = f"there is no field {unknown[1]!r}; similar names: {', '.join(similar or known)}"
    elif hint := re.search(r"Did you mean .*instead of \"(\w+)\"\?", text):
        place = next((a for a in argv if f".{hint[1]}" in a), place)
        text = hint[0]
    elif field := re.fullmatch(r"'(\w+)'", text):
        place = next((a for a in argv if f".{field[1]}" in a), place)
        text = f"there is no field {text}"
    elif isinstance(e, KeyError):
        text = f"there is no {text!r}"
    return f"{place}: {text or type(e).__name__}"


def _find_command(mode: str) -> Command:
    if mode not in COMMANDS:
        similar = difflib.get_close_matches(mode, COMMANDS, n=1)
        hint = f" (did you mean {similar[0]}?)" if similar else ""
        raise UserError(f"--mode={mode}: use one of {', '.join(COMMANDS)}{hint}")
    return COMMANDS[mode]


def _check_flags(mode: str, command: Command, values: Any) -> None:
    """Checks that the command takes all given flags, and that no required flag is missing.

    Raises:
      UserError: otherwise.
    """
    for name in sorted(FLAGS.keys() - command.flags.keys()):
        if values[name].present:
            if (mode, name) == ("tokenize", "input"):
                hint = (
                    "a folder's images need --config=default --config.data.source=folder "
                    "--config.data.folder=PATH"
                )
            elif command.flags:
                hint = "it takes " + ", ".join(f"--{n}" for n in sorted(command.flags))
            else:
                hint = "it takes only --workdir"
            raise UserError(f"--mode={mode} does not use --{name}; {hint}")
    if values.config is not None and not command.config:
        raise UserError(f"--mode={mode} does not use --config")
    if any(values[name].value in (None, "") for name in command.required):
        required = " and ".join(f"--{name}" for name in command.required)
        raise UserError(f"{mode} needs {required}; for example: --mode={mode} {command.example}")


def _workdir(command: Command, values: Any) -> Path:
    """Returns --workdir, or a folder named after --config, or the command's default."""
    if values.workdir:
        return files.expanded(values.workdir)
    if values.config is None:
        return Path(command.workdir)
    from ml_collections import config_flags

    name = config_flags.get_config_filename(values["config"])
    file, _, variant = name.partition(".py:")
    parts = (Path(file).stem, *variant.split("/"))  # "residual/fsq" is one folder
    return Path("runs") / "-".join(filter(None, parts))


def _expand_paths(config: Any) -> Any:
    """Expands ~ in the paths of a config, in place, and returns the config."""
    for path_field in _PATH_FIELDS:
        section, _, field = path_field.rpartition(".")
        holder = config.get(section) if section else config
        if not hasattr(holder, "get"):
            raise UserError(
                f"--config: its field {section} is not a section; make the config with "
                "vq_jax.config.base"
            )
        text = holder.get(field)
        if isinstance(text, str) and text.startswith("~"):
            holder[field] = os.path.expanduser(text)
    return config


def _arguments(command: Command, values: Any) -> dict[str, Any]:
    """Returns the keywords to call the command's function with."""
    arguments: dict[str, Any] = {"workdir": _workdir(command, values), **command.constants}
    for name, keyword in command.flags.items():
        value = values[name].value
        if value is None:
            continue
        if FLAGS[name].kind == "path":
            if not value:
                raise UserError(f"--{name} is empty")
            standard = name in ("input", "output") and value == str(files.STDIO)
            if standard and not command.streams:
                raise UserError(f"--{name}=-: this command takes no standard streams")
            value = files.expanded(value)
        arguments[keyword] = value
    if values.config is not None and command.config in ("run", "data"):
        config = _expand_paths(values.config)
        if command.config == "run":
            arguments["config"] = config
        else:
            from vq_jax.config import check

            check(config)
            arguments["data"] = config.data
    return arguments


# --- help -----------------------------------------------------------------------------------------


def _mode_of(argv: Sequence[str]) -> str | None:
    """Returns the value of --mode without parsing the other flags."""
    for i, argument in enumerate(argv):
        if match := re.fullmatch(r"--?mode(?:=(.*))?", argument):
            return match[1] if match[1] is not None else next(iter(argv[i + 1 :]), None)
    return None


def _help(argv: Sequence[str]) -> str:
    """Returns the text of --help: the list of commands, or the flags of the command in `argv`."""
    mode = _mode_of(argv)
    return _list_of_commands() if mode is None else _help_of_command(mode, _find_command(mode))


def _list_of_commands() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"usage: {_PROGRAM} --mode=COMMAND [flags]", "", "commands:"]
    lines += [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    lines += ["", f"{_PROGRAM} --mode=COMMAND --help shows the flags of a command."]
    lines += ["The default is --mode=train.", "", "recipes (--config=NAME):"]
    lines += [f"  {', '.join(recipes())}"]
    return "\n".join(lines)


def _help_of_command(mode: str, command: Command) -> str:
    config_help = {
        "run": "A recipe's name, or a config file; --config.FIELD=VALUE changes a field.",
        "data": "A recipe or config file whose section `data` is used instead of the run's.",
        "name": "A recipe or config file that names the run, if there is no --workdir.",
    }
    workdir_help = command.flag_help.get(
        "workdir", "The run's folder, or the name of a model that ships."
    )
    named = ", or runs/NAME with --config=NAME" if command.config else ""
    rows = {"workdir": f"{workdir_help} Default: {command.workdir}{named}."}
    if command.config:
        rows["config"] = config_help[command.config]
    for name in command.flags:
        rows[name] = command.flag_help.get(name, FLAGS[name].help)
        if isinstance(kind := FLAGS[name].kind, tuple):
            rows[name] += f" One of: {', '.join(kind)}."
    width = max(map(len, rows))
    lines = [f"{mode}: {command.help}", ""]
    lines += [f"  {_PROGRAM} --mode={mode} {command.example}".rstrip(), "", "flags:"]
    for name, text in rows.items():
        required = " Required." if name in command.required else ""
        lines.append(f"  --{name:<{width}}  {text}{required}")
    return "\n".join(lines)


# --- running --------------------------------------------------------------------------------------


def main(argv: Sequence[str]) -> int:
    """Runs one command. It may be called any number of times in one process.

    Args:
      argv: the program's name and its arguments, like `sys.argv`.

    Returns:
      the exit code: 0 for success, 2 for an error that is printed as one line, 130 for Ctrl-C.
    """
    log = logging.getLogger("vq_jax")
    handler = logging.StreamHandler()
    before = log.level, log.propagate
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    log.propagate = False
    try:
        if _HELP_FLAGS.intersection(argv[1:]):
            print(_help(argv))
            return 0
        values = _parse(argv)
        command = _find_command(values.mode)
        _check_flags(values.mode, command, values)
        _run(command, values)
        return 0
    except UserError as e:
        _print_error(str(e))
        return ERROR
    except BrokenPipeError:  # The reader of standard output has ended.
        return ERROR
    except KeyboardInterrupt as e:
        if not any(e.args):  # With arguments, the training loop has already reported it.
            _print_error("stopped")
        return INTERRUPTED
    except Exception as e:
        if (text := files.system_mistake(e)) is None:
            raise
        _print_error(text)
        return ERROR
    finally:
        log.removeHandler(handler)
        log.level, log.propagate = before


def _run(command: Command, values: Any) -> None:
    module, _, function = command.target.partition(":")
    from absl import logging as absl_logging

    # Libraries log a traceback of errors that they also raise.
    absl_logging.set_verbosity(absl_logging.FATAL)
    arguments = _arguments(command, values)
    target = getattr(importlib.import_module(f"vq_jax.tasks.{module}"), function)
    if "jax" in sys.modules:
        from vq_jax.training.parallel import keep_compiled

        keep_compiled()
    target(**arguments)


def _print_error(text: str) -> None:
    print(f"vq_jax: {text}", file=sys.stderr, flush=True)


def run() -> None:
    """Runs the program: sets up signals and streams, and calls `main` with `sys.argv`."""
    signal.signal(signal.SIGINT, _stop)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # Names may have characters that the locale lacks.
            stream.reconfigure(errors="backslashreplace")
    code = main(sys.argv)
    # Everything is written. A Ctrl-C while Python exits would only change the exit code.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def _stop(signum: int, frame: FrameType | None) -> None:
    """Handles Ctrl-C: ends the process at once.

    A KeyboardInterrupt could be lost in a callback, and a normal exit would end threads while they
    run compiled code. There is nothing to save: files are written atomically, and training has its
    own handler (`parallel.Preemption`).
    """
    files.discard_unfinished()
    if "multiprocessing" in sys.modules:  # Worker processes ignore the signal.
        for worker in sys.modules["multiprocessing"].active_children():
            worker.kill()
    for stream in (1, 2):
        if os.isatty(stream):
            os.write(stream, b"\x1b[?25h")  # A progress bar hides the cursor.
    training = _mode_of(sys.argv) in (None, "train")
    hint = "; the same command continues from the last checkpoint, if there is one"
    os.write(2, f"\nvq_jax: stopped{hint * training}\n".encode())
    os._exit(INTERRUPTED)

"""The command line: the tables of commands and flags, parsing, help and errors."""

import configparser
import inspect
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from importlib import import_module
from pathlib import Path

import pytest
from running import ROOT, environment, program, start, user_error

from vq_jax import cli, files
from vq_jax.recipes import recipes


def function_of(command):
    module, _, name = command.target.partition(":")
    return getattr(import_module(f"vq_jax.tasks.{module}"), name)


@pytest.mark.parametrize("mode", cli.COMMANDS)
def test_command_passes_the_arguments_of_its_function(mode):
    command = cli.COMMANDS[mode]
    assert command.flags.keys() <= cli.FLAGS.keys()
    assert set(command.required) <= {*command.flags, "config"}
    parameters = inspect.signature(function_of(command)).parameters
    has_kwargs = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    passed = {"workdir", *command.flags.values(), *command.constants}
    passed |= {"config"} if command.config == "run" else set()
    passed |= {"data"} if command.config == "data" else set()
    if not has_kwargs:
        assert passed <= parameters.keys()
    required = {
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    always_passed = {"workdir", *command.constants}
    always_passed |= {command.flags.get(name, name) for name in command.required}
    assert required <= always_passed


def test_every_flag_is_used_by_a_command():
    assert set().union(*(c.flags for c in cli.COMMANDS.values())) == cli.FLAGS.keys()


def test_help_lists_the_commands_and_the_flags_of_a_command():
    output = program("--help").stdout
    for mode, command in cli.COMMANDS.items():
        assert f"  {mode} " in output and command.help in output
    assert program("--mode", "sample", "--help").stdout.startswith("sample: ")
    output = program("--mode=compress", "--help").stdout
    flags = set(re.findall(r"^  --(\w+)", output, re.MULTILINE))
    assert flags == {"workdir", "config", *cli.COMMANDS["compress"].flags}
    assert cli.COMMANDS["compress"].example in output
    assert "did you mean compress?" in user_error("--mode=compres", "--help")


@pytest.mark.parametrize("mode", cli.COMMANDS)
def test_flags_of_other_commands_are_rejected(mode):
    for name in sorted(cli.FLAGS.keys() - cli.COMMANDS[mode].flags.keys()):
        kind = cli.FLAGS[name].kind
        value = kind[0] if isinstance(kind, tuple) else {"int": "1", "float": "1"}.get(kind, "x")
        flag = f"--{name}" if kind == "switch" else f"--{name}={value}"
        assert f"--mode={mode} does not use --{name}" in user_error(f"--mode={mode}", flag)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/default.py", "--config.optim.lrr=1"], 'optim.lrr=1: Did you mean "lr"'),
        (["--config=default", "--config.optim.rate=1"], "there is no field 'rate'"),
        (["--mode=tokenize", "--config.data.source=folder"], "need --config=FILE before them"),
        (["--config=configs/nosuch.py"], "there is no file configs/nosuch.py"),
        (["--config=README.md"], "give a Python config file"),
        (["--config=default", "--config.optim.lr=nan"], "optim.lr is nan"),
        (["--mode=sample", "--output="], "--output is empty"),
        (["--mode=evaluate", "--count=8"], "count is for FID: give inception"),
        (["--mode=plan", "--config=default", "--devices=0"], "use 1 or more"),
        (["--config=defalt"], "there is no recipe 'defalt'; similar names: default"),
        (["--config=default", "--config.data.source=emojy"], "did you mean emoji"),
        (["--config=default", "--config.data.batch_size=many"], "batch_size"),
        (["--config=default", "--config.seed=-1"], "seed is -1: use 0 to 4294967295"),
        (["--config=default", "--config.seed=4294967296"], "seed is 4294967296: use 0 to"),
        (["--mode=trian"], "did you mean train?"),
        (["--mode=train"], "train needs --config"),
        (["--no_such_flag=1"], "no_such_flag"),
        (["stray"], "stray"),
        (["--mode=evaluate", "--workdir=/nonexistent"], "/nonexistent"),
        (["--mode=evaluate", "--protocol=clean"], "protocol is for FID: give inception"),
        (["--mode=reconstruct", "--workdir=/nonexistent"], "--input and --output"),
        (["--mode=inpaint", "--input=a"], "needs --input and --output"),
        (["--mode=sample", "--output=-"], "--output=-: this command takes no standard streams"),
        (["--mode=list", "--workdir=~nosuchuser/x", "--config=default"], "does not use"),
        (["--mode=evaluate", "--workdir=~nosuchuser/x"], "~nosuchuser/x"),
        (["--mode=import", "--config=default", "--input=x"], "does not use --config"),
        (
            ["--config=default", "--config.data.source=folder"],
            "needs data.folder, a folder of images",
        ),
        (["--config=vqvae_mlp:nosuch"], "nosuch"),
        (["--config=default", "--config.discriminator.norm=layer"], "'group' or 'none'"),
        (["--config=default", "--config.data.resolution=30"], "does not halve"),
        (["--config=default", "--workdir=README.md"], "README.md is a file"),
        (["--config=default", "--config.adversarial.generator_loss=linar"], "did you mean linear"),
        (["--config=default", "--processes=2"], "processes and process need distributed"),
        (["--config=prior_default", "--mode=plan"], "plan needs that of a tokenizer"),
    ],
)
def test_errors_are_one_line_with_exit_code_2(arguments, message, tmp_path):
    if not any(a.startswith("--workdir") for a in arguments):
        arguments = [*arguments, f"--workdir={tmp_path / 'run'}"]
    assert message in user_error(*arguments)
    assert not (tmp_path / "run").exists()


def test_main_can_be_called_repeatedly():
    log = logging.getLogger("vq_jax")
    before = log.handlers[:]
    for config in ("default", "default:fsq", "vqvae_mlp:emoji"):
        assert "resolution is 0" in user_error(f"--config={config}", "--config.data.resolution=0")
        assert program("--help").returncode == 0
    assert log.handlers == before


def test_home_is_expanded_in_all_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    error = user_error(
        "--config=default", "--workdir=~/run", "--config.data.source=folder",
        "--config.data.folder=~/images",
    )  # fmt: skip
    assert f"no images in {tmp_path}/images" in error
    assert f"{tmp_path}/x.png does not exist" in user_error(
        "--mode=reconstruct", "--workdir=~/run", "--input=~/x.png", "--output=~/y.png"
    )
    assert f"there is no folder {tmp_path}/tok" in user_error(
        "--config=prior_default", "--config.tokenizer=~/tok", "--workdir=~/run"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images"]


def test_list_shows_the_recipes_and_runs(tmp_path):
    run = tmp_path / "runs" / "mine"
    (run / "checkpoints" / "40").mkdir(parents=True)
    shutil.copy(ROOT / "experiments" / "default" / "config.json", run)
    (run / "evaluation.json").write_text(json.dumps({"psnr": 21.5, "lpips": 0.25}))
    (tmp_path / "runs" / "other").mkdir()
    (tmp_path / "runs" / "other" / "config.json").write_text('{"phases": [1], "quantizer": {}}')
    (tmp_path / "runs" / "unreadable").mkdir()
    (tmp_path / "runs" / "unreadable" / "config.json").write_text('{"phases": ')
    output = program("--mode=list", f"--workdir={tmp_path / 'runs'}").stdout
    for name in recipes():
        assert name in output
    lines = output.splitlines()
    row = next(line for line in lines if "mine" in line)
    for part in ("tokenizer (vq)", "40 of", "PSNR 21.50"):
        assert part in row
    assert "other" not in output
    assert "config.json cannot be read" in next(line for line in lines if "unreadable" in line)
    assert "is not a folder" in user_error("--mode=list", "--workdir=README.md")


def test_help_and_list_import_no_jax():
    code = (
        "import sys\nfrom vq_jax import cli\n"
        "cli.main(['', '--help']), cli.main(['', '--mode=list'])\nsys.exit('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stdout


# --- the process ----------------------------------------------------------------------------------


def test_recipes_are_found_from_any_folder_and_non_ascii_names_are_printed(tmp_path):
    env = environment() | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    name = os.fsdecode(b"caf\xe9 \xc3\xbc")
    done = subprocess.run(
        [sys.executable, "-m", "vq_jax.main", "--config=default", f"--workdir={name}",
         "--config.data.source=folder", f"--config.data.folder={name}"],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "there is no folder caf" in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_ctrl_c_prints_one_line_even_during_the_imports(tmp_path):
    for wait in (0.8, 2.0):
        run = start("--config=default", f"--workdir={tmp_path / 'run'}")
        time.sleep(wait)
        run.send_signal(signal.SIGINT)
        output, _ = run.communicate(timeout=60)
        assert run.returncode == 130, output
        assert "stopped" in output and "Traceback" not in output


def test_system_errors_are_one_line():
    assert "/dev/null/run" in user_error("--config=default", "--workdir=/dev/null/run")
    full = OSError(28, "No space left on device", "/data/x")
    assert files.system_mistake(full).startswith("/data/x: No space left on device: free")
    wrapped = ValueError('INTERNAL: writing "/data/y": Permission denied [source]')
    assert "/data/y: Permission denied" in files.system_mistake(wrapped)
    try:
        raise RuntimeError("failed") from full
    except RuntimeError as e:
        assert "No space left" in files.system_mistake(e)
    assert files.system_mistake(ValueError("not a system error")) is None


def test_broken_pipe_prints_no_traceback():
    run = subprocess.Popen(
        [sys.executable, "-m", "vq_jax.main", "--help"],
        cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    run.stdout.close()
    assert b"Traceback" not in run.stderr.read()
    run.wait()


# --- the installed files --------------------------------------------------------------------------


def test_all_packages_and_recipes_are_in_the_wheel(tmp_path):
    pytest.importorskip("setuptools")
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    folders = {p.parent for p in (ROOT / "vq_jax").rglob("*.py")}
    found = {".".join(p.relative_to(ROOT).parts) for p in folders}
    assert listed == found | {"vq_jax.configs"}
    copied = tmp_path / "tree"
    ignore = shutil.ignore_patterns("*.egg-info", "__pycache__")
    for name in ("vq_jax", "configs"):
        shutil.copytree(ROOT / name, copied / name, ignore=ignore)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, copied)
    code = "from setuptools import build_meta; build_meta.build_wheel('.')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=copied, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(copied.glob("*.whl"))) as wheel:
        names = {Path(name) for name in wheel.namelist()}
    assert {Path("vq_jax/configs") / f"{name}.py" for name in recipes()} <= names
    assert Path("vq_jax/py.typed") in names
    assert Path("vq_jax/weights/photo-codec/model.safetensors") in names
    assert {"NOTICE", "LICENSE"} <= {path.name for path in names}

"""The command line: two tables, and what derives from them."""

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
from running import ROOT, environment, mistake, program, start

from vq_jax import cli, files
from vq_jax.recipes import recipes


def function_of(command):
    module, _, name = command.target.partition(":")
    return getattr(import_module(f"vq_jax.tasks.{module}"), name)


@pytest.mark.parametrize("mode", cli.COMMANDS)
def test_a_command_passes_what_its_function_takes(mode):
    command = cli.COMMANDS[mode]
    assert command.flags.keys() <= cli.FLAGS.keys()
    assert set(command.needs) <= {*command.flags, "config"}
    parameters = inspect.signature(function_of(command)).parameters
    takes_more = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    passed = {"workdir", *command.flags.values(), *command.fixed}
    passed |= {"config"} if command.config == "run" else set()
    passed |= {"data"} if command.config == "data" else set()
    if not takes_more:
        assert passed <= parameters.keys()
    needed = {
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    given = {"workdir", *command.fixed, *(command.flags.get(n, n) for n in command.needs)}
    assert needed <= given


def test_every_flag_is_some_commands():
    assert set().union(*(c.flags for c in cli.COMMANDS.values())) == cli.FLAGS.keys()


def test_help_lists_commands_and_a_commands_own_flags():
    said = program("--help").stdout
    for mode, command in cli.COMMANDS.items():
        assert f"  {mode} " in said and command.about in said
    assert program("--mode", "sample", "--help").stdout.startswith("sample: ")
    said = program("--mode=compress", "--help").stdout
    shown = set(re.findall(r"^  --(\w+)", said, re.MULTILINE))
    assert shown == {"workdir", "config", *cli.COMMANDS["compress"].flags}
    assert cli.COMMANDS["compress"].example in said
    assert "did you mean compress?" in mistake("--mode=compres", "--help")


@pytest.mark.parametrize("mode", cli.COMMANDS)
def test_a_flag_of_other_commands_is_refused(mode):
    for name in sorted(cli.FLAGS.keys() - cli.COMMANDS[mode].flags.keys()):
        kind = cli.FLAGS[name].kind
        value = kind[0] if isinstance(kind, tuple) else {"int": "1", "float": "1"}.get(kind, "x")
        flag = f"--{name}" if kind == "switch" else f"--{name}={value}"
        assert f"--mode={mode} does not look at --{name}" in mistake(f"--mode={mode}", flag)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/default.py", "--config.optim.lrr=1"], 'optim.lrr=1: Did you mean "lr"'),
        (["--config=default", "--config.optim.rate=1"], "there is no field 'rate'"),
        (["--mode=tokenize", "--config.data.source=folder"], "need --config=FILE before them"),
        (["--config=configs/nosuch.py"], "there is no file configs/nosuch.py"),
        (["--config=README.md"], "a config file is Python"),
        (["--config=default", "--config.optim.lr=nan"], "optim.lr is nan"),
        (["--mode=sample", "--output="], "--output is empty"),
        (["--mode=evaluate", "--count=8"], "--count is of FID's samples"),
        (["--mode=plan", "--config=default", "--devices=0"], "use 1 or more"),
        (["--config=defalt"], "there is no recipe 'defalt'; near: default"),
        (["--config=default", "--config.data.source=emojy"], "did you mean emoji"),
        (["--config=default", "--config.data.batch_size=many"], "batch_size"),
        (["--config=default", "--config.seed=-1"], "seed is -1: use 0 to 4294967295"),
        (["--config=default", "--config.seed=4294967296"], "seed is 4294967296: use 0 to"),
        (["--mode=trian"], "did you mean train?"),
        (["--mode=train"], "train needs --config"),
        (["--no_such_flag=1"], "no_such_flag"),
        (["stray"], "stray"),
        (["--mode=evaluate", "--workdir=/nonexistent"], "/nonexistent"),
        (["--mode=evaluate", "--protocol=clean"], "it needs --inception"),
        (["--mode=reconstruct", "--workdir=/nonexistent"], "--input and --output"),
        (["--mode=inpaint", "--input=a", "--output=b"], "needs --input and --output and --mask"),
        (["--mode=sample", "--output=-"], "--output=-: this command takes no standard streams"),
        (["--mode=list", "--workdir=~nosuchuser/x", "--config=default"], "does not look at"),
        (["--mode=evaluate", "--workdir=~nosuchuser/x"], "~nosuchuser/x"),
        (["--mode=import", "--config=default", "--input=x"], "does not look at --config"),
        (["--config=default", "--config.data.source=folder"], "--config.data.folder=PATH"),
        (["--config=vqvae_mlp:nosuch"], "nosuch"),
        (["--config=default", "--config.discriminator.norm=layer"], "'group' or 'none'"),
        (["--config=default", "--config.data.resolution=30"], "does not halve"),
        (["--config=default", "--workdir=README.md"], "README.md is a file"),
        (["--config=default", "--config.adversarial.generator_loss=linar"], "did you mean linear"),
        (["--config=default", "--processes=2"], "go with --distributed"),
        (["--config=prior_default", "--mode=plan"], "plan counts a tokenizer's step"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message, tmp_path):
    if not any(a.startswith("--workdir") for a in arguments):
        arguments = [*arguments, f"--workdir={tmp_path / 'run'}"]
    assert message in mistake(*arguments)
    assert not (tmp_path / "run").exists()


def test_it_can_be_called_again_and_again():
    log = logging.getLogger("vq_jax")
    before = log.handlers[:]
    for config in ("default", "default:fsq", "vqvae_mlp:emoji"):
        assert "resolution is 0" in mistake(f"--config={config}", "--config.data.resolution=0")
        assert program("--help").returncode == 0
    assert log.handlers == before


def test_home_is_expanded_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    said = mistake(
        "--config=default", "--workdir=~/run", "--config.data.source=folder",
        "--config.data.folder=~/images",
    )  # fmt: skip
    assert f"no images in {tmp_path}/images" in said
    assert f"there is no {tmp_path}/x.png" in mistake(
        "--mode=reconstruct", "--workdir=~/run", "--input=~/x.png", "--output=~/y.png"
    )
    assert f"there is no folder {tmp_path}/tok" in mistake(
        "--config=prior_default", "--config.tokenizer=~/tok", "--workdir=~/run"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images"]


def test_list_shows_recipes_and_runs(tmp_path):
    run = tmp_path / "runs" / "mine"
    (run / "checkpoints" / "40").mkdir(parents=True)
    shutil.copy(ROOT / "experiments" / "default" / "config.json", run)
    (run / "evaluation.json").write_text(json.dumps({"psnr": 21.5, "lpips": 0.25}))
    (tmp_path / "runs" / "other").mkdir()
    (tmp_path / "runs" / "other" / "config.json").write_text('{"phases": [1], "quantizer": {}}')
    (tmp_path / "runs" / "torn").mkdir()
    (tmp_path / "runs" / "torn" / "config.json").write_text('{"phases": ')
    said = program("--mode=list", f"--workdir={tmp_path / 'runs'}").stdout
    for name in recipes():
        assert name in said
    row = next(line for line in said.splitlines() if "mine" in line)
    for part in ("tokenizer (vq)", "40 of", "PSNR 21.50"):
        assert part in row
    assert "other" not in said
    assert "config.json cannot be read" in next(s for s in said.splitlines() if "torn" in s)
    assert "is no folder" in mistake("--mode=list", "--workdir=README.md")


def test_help_and_list_import_no_jax():
    code = (
        "import sys\nfrom vq_jax import cli\n"
        "cli.main(['', '--help']), cli.main(['', '--mode=list'])\nsys.exit('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stdout


# --- the process ------------------------------------------------------------------------------------


def test_a_recipe_is_found_from_anywhere_and_a_name_beyond_ascii_is_told(tmp_path):
    env = environment() | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    name = os.fsdecode(b"caf\xe9 \xc3\xbc")
    done = subprocess.run(
        [sys.executable, "-m", "vq_jax.main", "--config=default", f"--workdir={name}",
         "--config.data.source=folder", f"--config.data.folder={name}"],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "there is no folder caf" in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_ctrl_c_is_one_line_from_the_first_moment(tmp_path):
    for wait in (0.8, 2.0):
        run = start("--config=default", f"--workdir={tmp_path / 'run'}")
        time.sleep(wait)
        run.send_signal(signal.SIGINT)
        said, _ = run.communicate(timeout=60)
        assert run.returncode == 130, said
        assert "stopped" in said and "Traceback" not in said


def test_what_the_system_refuses_is_one_line():
    assert "/dev/null/run" in mistake("--config=default", "--workdir=/dev/null/run")
    full = OSError(28, "No space left on device", "/data/x")
    assert files.system_mistake(full).startswith("/data/x: No space left on device: free")
    wrapped = ValueError('INTERNAL: writing "/data/y": Permission denied [source]')
    assert "/data/y: Permission denied" in files.system_mistake(wrapped)
    try:
        raise RuntimeError("failed") from full
    except RuntimeError as e:
        assert "No space left" in files.system_mistake(e)
    assert files.system_mistake(ValueError("nothing of the kind")) is None


def test_a_reader_that_goes_away_is_no_traceback():
    run = subprocess.Popen(
        [sys.executable, "-m", "vq_jax.main", "--help"],
        cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    run.stdout.close()
    assert b"Traceback" not in run.stderr.read()
    run.wait()


# --- what is installed ------------------------------------------------------------------------------


def test_all_packages_and_recipes_are_installed(tmp_path):
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
    assert {"NOTICE", "LICENSE"} <= {path.name for path in names}

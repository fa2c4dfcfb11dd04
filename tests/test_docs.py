"""Every command and every Python example in the README and the docs is one that works."""

import ast
import configparser
import importlib
import re
import shlex
from pathlib import Path

import pytest

import vq_jax
from vq_jax import cli
from vq_jax.recipes import recipes

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [
    *sorted((ROOT / "experiments").rglob("README.md")),
    *sorted((ROOT / "configs").glob("*.py")),
]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """The command lines of shell blocks, of tables and of config files' docstrings."""
    text = re.sub(r"\\+\n\s*", "", text)  # continued lines
    found = []
    for line in "\n".join(blocks(text, "bash")).splitlines():
        found += re.split(r"\s*&&\s*", line.partition("  #")[0].strip())
    found += re.findall(r"`((?:python -m |pip install|pytest)[^`]*)`", text)
    found += re.findall(r"^ {4}((?:\S+=\S+ )*python -m .*?)(?:  +#.*)?$", text, re.MULTILINE)
    return [command for command in found if command and not command.startswith("#")]


def check_program(words: list[str]) -> None:
    """Parses a command of the program as the program does, and refuses what it would refuse."""
    if "--help" in words:
        assert cli._help(["main", *words])
        return
    known = recipes()
    argv = ["main"]
    for word in words:
        # A user's own config file stands for a recipe.
        config = re.fullmatch(r"--config=([^:]+\.py)(:\w+)?", word)
        if config and not (ROOT / config[1]).exists():
            word = f"--config={known['default']}"
        argv.append(word)
    values = cli._parse(argv)
    command = cli._find_command(values.mode)
    cli._check_flags(values.mode, command, values)


def extras() -> set[str]:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return set(parser["options.extras_require"])


def check_command(command: str) -> None:
    words = [w for w in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=\S*", w)]
    if "|" in words or ">" in words or "<" in words:
        words = words[: min(words.index(w) for w in ("|", ">", "<") if w in words)]
    match words:
        case ["python", "-m", "vq_jax.main", *rest]:
            check_program(rest)
        case ["python", "-m", module, *_]:
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), command
        case ["pip", "install", *rest]:
            for names in re.findall(r"(?:\.|vq_jax)\[([\w,]+)\]", " ".join(rest)):
                assert set(names.split(",")) <= extras(), command
        case ["pytest", *rest]:
            for path in (w for w in rest if w.startswith("tests")):
                assert (ROOT / path).exists(), command
            if "-k" in rest:
                name = rest[rest.index("-k") + 1]
                assert any(name in p.read_text() for p in (ROOT / "tests").rglob("test_*.py")), (
                    command
                )
        case ["bash", path, *_]:
            assert (ROOT / path).exists(), command
        case [
            ("pre-commit" | "mkdocs" | "cd" | "git" | "ruff" | "mypy" | "unzip" | "mkdir" | "curl"),
            *_,
        ]:
            pass
        case _:
            pytest.fail(f"no check for this command: {command}")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_parse(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in commands(page.read_text()):
        try:
            check_command(command)
        except vq_jax.UserError as e:
            pytest.fail(f"{command}: {e}")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_examples_name_what_exists(page):
    """Examples compile, and what they import is there."""
    for block in blocks(page.read_text(), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)


def test_pages_link_to_what_exists():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"


def test_the_readme_is_short_and_every_page_is_in_it():
    readme = (ROOT / "README.md").read_text()
    assert readme.count("\n") <= 150
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"docs/{page.name}" in readme

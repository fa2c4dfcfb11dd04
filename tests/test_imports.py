"""Imports go to later rows only, and files and functions are short."""

import ast
import graphlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vq_jax"
# A file may import from its own package and from later rows.
ROWS = [
    ["main"],
    ["cli"],
    ["commands"],
    ["tasks"],
    ["page"],
    ["text_editing", "video_editing"],
    ["editing", "codec"],
    ["runs"],
    ["prior"],
    ["tokenizer"],
    ["config"],
    ["training", "modalities"],
    ["data", "interop"],
    ["models"],
    ["quantizers"],
    ["losses", "metrics", "sampling", "collectives", "codes"],
    ["console", "bounds", "files", "recipes"],
    ["errors"],
]
ROW_OF = {part: i for i, row in enumerate(ROWS) for part in row}


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} has a relative import"
            names = [node.module] + [f"{node.module}.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top == "configs":
                yield "configs"
            if top == "vq_jax" and rest.split(".")[0] in ROW_OF:
                yield rest.split(".")[0]


FILES = [p for p in sorted(PACKAGE.rglob("*.py")) if p.parent != PACKAGE or p.stem != "__init__"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_to_later_rows(path):
    importer = part(path)
    assert importer in ROW_OF, f"{importer} has no row: add it to ROWS and to docs/architecture.md"
    for imported in imported_parts(path):
        assert imported != "configs", f"{path} imports a config file"
        assert imported == importer or ROW_OF[imported] > ROW_OF[importer], (
            f"{path} imports {imported}"
        )


def test_files_do_not_import_each_other():
    """Imports at the top of files; those inside functions come later."""
    names = {".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts): p for p in FILES}
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        graph[name] = set()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = [f"{node.module}.{alias.name}" for alias in node.names]
                graph[name] |= {m if m in names else node.module for m in modules}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_only_one_file_has_parallelism_and_only_one_imports_orbax():
    steps = (PACKAGE / "training" / "steps.py").read_text()
    assert "training.parallel" not in steps and "training import parallel" not in steps
    for path in FILES:
        if path.name != "parallel.py":
            text = path.read_text()
            assert "jax.pmap(" not in text and "NamedSharding" not in text, path
        if path.name != "checkpoint.py":
            assert "import orbax" not in path.read_text()
            assert "from orbax" not in path.read_text()


def functions(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            yield node, ast.get_docstring(node) or ""


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_are_short(path):
    """Docstrings do not count. The docstring of a longer function says why it is one function."""
    assert path.read_text().count("\n") <= 450
    for function, docstring in functions(path):
        length = function.end_lineno - function.lineno + 1 - len(docstring.splitlines())
        reason = "is one function because" in " ".join(docstring.split())
        assert length <= 60 + 2 or reason, f"{function.name} has {length} lines"

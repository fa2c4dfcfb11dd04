"""The house's one rule: imports run one way."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vq_jax"
# From the door inwards: a file may import what stands in a later row, or its own room.
ROWS = [
    ["main"],
    ["cli"],
    ["tasks"],
    ["editing", "codec"],
    ["prior", "tiles"],
    ["tokenizer"],
    ["config"],
    ["training", "data", "interop"],
    ["models"],
    ["quantizers"],
    ["losses", "metrics", "sampling", "bitstream", "collectives"],
    ["files", "recipes"],
    ["errors"],
]
ROW_OF = {room: i for i, row in enumerate(ROWS) for room in row}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports by a relative name"
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
def test_imports_run_one_way(path):
    here = room(path)
    assert here in ROW_OF, f"{here} has no row: put it into ROWS and the README's map"
    for there in imported_rooms(path):
        assert there != "configs", f"{path} imports a config file"
        assert there == here or ROW_OF[there] > ROW_OF[here], f"{path} imports {there}"


def test_steps_know_nothing_of_parallelism_and_only_one_file_names_it():
    steps = (PACKAGE / "training" / "steps.py").read_text()
    assert "training.parallel" not in steps and "training import parallel" not in steps
    for path in FILES:
        if path.name != "parallel.py":
            text = path.read_text()
            assert "jax.pmap(" not in text and "NamedSharding" not in text, path
        if path.name != "checkpoint.py":
            assert "import orbax" not in path.read_text()
            assert "from orbax" not in path.read_text()

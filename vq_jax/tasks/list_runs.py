"""Shows what there is to work with: the recipes, and the runs with their figures."""

import ast
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vq_jax.recipes import recipes

# figure in evaluation.json -> (what it is called in the list, its format)
_FIGURES = {
    "psnr": ("PSNR", ".2f"),
    "lpips": ("LPIPS", ".3f"),
    "usage": ("codes in use", ".1%"),
    "bits_per_code": ("bits a code", ".2f"),
    "efficientnet_frechet": ("Frechet", ".1f"),
}


def list_runs(workdir: Path) -> None:
    """`--mode=list`: the recipes with what they are; the runs below a folder with kind, step, figures.

    Args:
      workdir: the folder of runs; a run's own folder is a list of one.
    """
    console = Console(highlight=False, soft_wrap=True, markup=False)
    table = Table(title="recipes: --config=NAME", title_justify="left")
    table.add_column("name")
    table.add_column("what it is")
    for name, path in recipes().items():
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        table.add_row(name, docstring.partition("\n")[0])
    console.print(table)
    configs = [workdir / "config.json"]
    if not configs[0].is_file():
        configs = sorted(p for p in workdir.rglob("config.json") if p.is_file())
    table = Table(title=f"runs: --workdir={workdir}/NAME", title_justify="left")
    for column in ("name", "kind", "step", "figures"):
        table.add_column(column)
    for path in configs:
        if (row := _row(path, workdir)) is not None:
            table.add_row(*row)
    if table.row_count:
        console.print(table)
    else:
        console.print(f"no runs in {workdir}")


def _row(path: Path, workdir: Path) -> tuple[str, str, str, str] | None:
    """Name, kind, step and figures of the run whose config this is; None where it is no run's."""
    config = _read(path)
    prior = "prior" in config
    section, phases = config.get("prior" if prior else "quantizer"), config.get("phases")
    if not isinstance(section, dict) or not isinstance(phases, dict):
        return None
    kind = f"{'prior' if prior else 'tokenizer'} ({section.get('name', '?')})"
    checkpoints = (path.parent / "checkpoints").glob("[0-9]*")
    steps = [int(folder.name) for folder in checkpoints if folder.name.isdecimal()]
    total = sum(n for n in phases.values() if isinstance(n, int))
    if steps:
        step = f"{max(steps):,} of {total:,}"
    else:
        step = "imported" if (path.parent / "model.safetensors").is_file() else "not begun"
    found = _read(path.parent / "evaluation.json")
    figures = ", ".join(
        f"{called} {found[name]:{form}}"
        for name, (called, form) in _FIGURES.items()
        if isinstance(found.get(name), int | float)
    )
    return str(path.parent.relative_to(workdir)), kind, step, figures or "not measured"


def _read(path: Path) -> dict[str, Any]:
    """A JSON file's object; {} where there is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}

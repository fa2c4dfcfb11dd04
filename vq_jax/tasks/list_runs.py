"""Lists the recipes, the models that ship, and the runs with their figures."""

import ast
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vq_jax.errors import UserError
from vq_jax.files import shipped
from vq_jax.recipes import recipes

# figure in evaluation.json -> (its name in the list, its format)
_FIGURES = {
    "psnr": ("PSNR", ".2f"),
    "lpips": ("LPIPS", ".3f"),
    "relative_error": ("relative error", ".3f"),
    "unique_share": ("unique IDs", ".1%"),
    "byte_accuracy": ("bytes right", ".1%"),
    "bits_per_byte_sum": ("bits a byte", ".3f"),
    "usage": ("codes in use", ".1%"),
    "bits_per_code": ("bits a code", ".2f"),
    "efficientnet_frechet": ("Frechet", ".1f"),
}


def list_runs(workdir: Path) -> None:
    """`--mode=list`: prints the recipes, the models that ship, and the runs below a folder.

    Args:
      workdir: the folder of runs, or that of one run.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"workdir: {workdir} is not a folder")
    width = None if sys.stdout.isatty() else 160  # names are not truncated in a pipe
    console = Console(highlight=False, soft_wrap=True, markup=False, width=width)
    table = Table(title="recipes: --config=NAME", title_justify="left")
    table.add_column("name")
    table.add_column("description")
    for name, path in recipes().items():
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        table.add_row(name, docstring.partition("\n")[0])
    console.print(table)
    table = Table(title="models that ship: --workdir=NAME", title_justify="left")
    table.add_column("name")
    table.add_column("description")
    for folder in shipped():
        _, _, rest = (folder / "README.md").read_text().partition("\n")
        table.add_row(folder.name, rest.strip().partition("\n")[0])
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
        console.print(f"{'no runs in' if workdir.exists() else 'there is no folder'} {workdir}")


def _row(path: Path, workdir: Path) -> tuple[str, str, str, str] | None:
    """Name, kind, step and figures of the run with this config; None if it is no run's config."""
    name = str(path.parent.relative_to(workdir))
    config = _read(path)
    if config is None:
        return name, "config.json cannot be read", "", ""
    kind, main = ("prior", "prior") if "prior" in config else ("tokenizer", "quantizer")
    section, phases = config.get(main), config.get("phases")
    if not isinstance(section, dict) or not isinstance(phases, dict):
        return None
    kind = f"{kind} ({section.get('name', '?')})"
    checkpoints = (path.parent / "checkpoints").glob("[0-9]*")
    steps = [int(folder.name) for folder in checkpoints if folder.name.isdecimal()]
    total = sum(n for n in phases.values() if isinstance(n, int))
    if steps:
        step = f"{max(steps):,} of {total:,}"
    else:
        step = "imported" if (path.parent / "model.safetensors").is_file() else "not begun"
    found = _read(path.parent / "evaluation.json") or {}
    if found.get("references_are") == "decoded codes":
        found.pop("efficientnet_frechet", None)  # not comparable with other runs
    figures = ", ".join(
        f"{heading} {found[name]:{form}}"
        for name, (heading, form) in _FIGURES.items()
        if type(found.get(name)) in (int, float)
    )
    return name, kind, step, figures or "not measured"


def _read(path: Path) -> dict[str, Any] | None:
    """Reads the object in a JSON file; {} if there is no file or no object, None if it is damaged."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else {}

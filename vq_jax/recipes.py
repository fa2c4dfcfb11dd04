"""Finds the recipes, the config files that come with the package."""

from pathlib import Path


def recipes() -> dict[str, Path]:
    """Returns the path of each recipe, by the name that `--config=NAME` takes."""
    package = Path(__file__).parent
    # A wheel has them inside the package, a checkout beside it.
    candidates = (package / "configs", package.parent / "configs")
    folder = next((path for path in candidates if path.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("[a-z]*.py"))} if folder else {}

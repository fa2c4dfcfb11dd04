"""The recipes that come with the package."""

from pathlib import Path


def recipes() -> dict[str, Path]:
    """The config files by name, as `--config=NAME` takes it."""
    package = Path(__file__).parent
    # In a checkout they lie beside the package, in a wheel inside it.
    places = (package / "configs", package.parent / "configs")
    folder = next((place for place in places if place.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("[a-z]*.py"))} if folder else {}

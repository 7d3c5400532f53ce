"""The recipes that come with aimgraph."""

import difflib
from pathlib import Path

from aimgraph.errors import ConfigError
from aimgraph.experiment.recipe import Recipe, read_recipe

FOLDER = Path(__file__).parent / "recipes"


def shipped() -> dict[str, Recipe]:
    """Name -> recipe."""
    return {path.stem: read_recipe(path) for path in sorted(FOLDER.glob("*.toml"))}


def path_of(name: str) -> Path:
    """The file of a recipe: `name` itself if there is such a file, or the one of that name that comes with aimgraph.

    Raises:
        ConfigError: There is neither.
    """
    if Path(name).is_file():
        return Path(name)
    names = [path.stem for path in sorted(FOLDER.glob("*.toml"))]
    if name in names:
        return FOLDER / f"{name}.toml"
    close = difflib.get_close_matches(name, names, n=1)
    meant = f"; did you mean {close[0]}?" if close else ""
    raise ConfigError(f"RECIPE is {name!r}: there is no such file, and aimgraph has {', '.join(names)}{meant}")

"""Settings of known training runs: what a recipe does not name has its default value."""

from importlib.resources import files
from typing import Any

import yaml

_FOLDER = files(__name__)


def recipe_names() -> list[str]:
    """The names of all recipes, sorted."""
    names = (file.name for file in _FOLDER.iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def load_recipe(name: str) -> dict[str, dict[str, Any]]:
    """The options of a recipe, by section: those of ``Config``, and "eval" of ``EvalConfig``.

    Raises:
        ValueError: there is no such recipe.
    """
    if name not in recipe_names():
        raise ValueError(f"--recipe: expected one of {', '.join(recipe_names())}, got {name!r}")
    return yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))

"""Recipes: one YAML file that assembles a whole pipeline. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rlhf_kit.components import placed
from rlhf_kit.errors import PluginError, RecipeError
from rlhf_kit.plugins import LoadedPlugins, load_plugins
from rlhf_kit.recipe.document import Document
from rlhf_kit.recipe.dump import dump_yaml, filled, plain
from rlhf_kit.recipe.load import read_recipe
from rlhf_kit.recipe.overrides import apply_overrides
from rlhf_kit.recipe.resolve import resolve
from rlhf_kit.recipe.schema import Recipe, StageBlock
from rlhf_kit.recipe.walk import refs_of
from rlhf_kit.registry import Registry

__all__ = [
    "Recipe",
    "StageBlock",
    "apply_overrides",
    "dump_yaml",
    "filled",
    "open_recipe",
    "plain",
    "read_recipe",
    "refs_of",
    "resolve",
]


def open_recipe(
    path: Path, overrides: Sequence[str] = (), extra_plugins: Iterable[Path] = ()
) -> tuple[Recipe, LoadedPlugins, Registry]:
    """Read, override and resolve a recipe with its plugins. Raises RecipeError or PluginError.

    ``extra_plugins`` (relative to the current folder) join the recipe's own ``plugins``, so that
    its dump names everything it needs.
    """
    document = apply_overrides(read_recipe(path), overrides)
    files = _own_plugins(document)
    for file in extra_plugins:
        files.setdefault(Path(file).resolve(), f"--plugin {file}")
    loaded = load_plugins(files)
    for broken in loaded.broken:
        if broken.file is not None:
            raise PluginError(f"{files[broken.file]}: {broken.file.name}: {broken.cause}")
    registry = Registry(loaded)
    return resolve(document, registry, plugins=tuple(files)), loaded, registry


def _own_plugins(document: Document) -> dict[Path, str]:
    """The files under ``plugins:``, each with its place in the recipe for a message.

    What is not a list of strings is left for the schema to refuse.
    """
    names = document.values.get("plugins")
    if not isinstance(names, list):
        return {}
    found: dict[Path, str] = {}
    for index, name in enumerate(names):
        if not isinstance(name, str):
            continue
        where = f"{document.where(('plugins', str(index)))}: plugins.{index}"
        try:
            found[placed(name, document.base)] = where
        except ValueError as error:
            raise RecipeError(f"{where}: is {name[:60]!r}; {error}") from None
    return found

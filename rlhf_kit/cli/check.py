"""`rlhf-kit check`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from rlhf_kit.cli.recipe_args import OVERRIDES_HELP, json_option, recipe_args, tell_broken
from rlhf_kit.recipe import Recipe, dump_yaml, filled, open_recipe, refs_of
from rlhf_kit.recipe.document import shown


@click.command(
    help=f"""Check RECIPE without running it: every key, every option, every reference.

    All problems of the recipe are listed, each with its line, and of each data file the first.
    Nothing is downloaded, no model is loaded and no reward is called.

    {OVERRIDES_HELP}
    """
)
@recipe_args
@click.option("--filled", "show_filled", is_flag=True, help="Print the recipe with all defaults.")
@json_option
def check(
    recipe: Path,
    overrides: tuple[str, ...],
    plugin_files: tuple[Path, ...],
    show_filled: bool,
    as_json: bool,
) -> None:
    resolved, loaded, registry = open_recipe(recipe, overrides, plugin_files)
    tell_broken(loaded)
    for line in registry.unused():
        click.echo(f"warning: {line}", err=True)
    if as_json:
        click.echo(json.dumps(_account(resolved) | {"recipe": filled(resolved)}, indent=2))
    elif show_filled:
        click.echo(dump_yaml(resolved), nl=False)
    else:
        click.echo("\n".join(_lines(resolved)))


def _account(recipe: Recipe) -> dict[str, Any]:
    return {
        "ok": True,
        "name": recipe.name,
        "path": shown(recipe.path),
        "seed": recipe.seed,
        "model": recipe.model.component.name,
        "engine": recipe.engine.component.name,
        "memory": recipe.memory.component.name,
        "observers": {name: p.component.name for name, p in recipe.observers.items()},
        "stages": [
            {
                "id": stage.id,
                "use": stage.part.component.name,
                "package": stage.part.package,
                "produces": stage.part.component.produces,
                "needs": stage.needs,
                "folders": [str(r.folder) for r in refs_of(stage.part) if r.folder],
            }
            for stage in recipe.stages.values()
        ],
    }


def _lines(recipe: Recipe) -> list[str]:
    account = _account(recipe)
    lines = [
        f"{recipe.name} ({account['path']})",
        f"  model   {account['model']}",
        f"  engine  {account['engine']}",
        f"  memory  {account['memory']}",
        "  stages",
    ]
    ids = max(len(stage["id"]) for stage in account["stages"])
    uses = max(len(stage["use"]) for stage in account["stages"])
    for number, stage in enumerate(account["stages"], start=1):
        sources = [*stage["needs"], *(shown(Path(folder)) for folder in stage["folders"])]
        origin = f"from {', '.join(sources)}" if sources else "from the model"
        lines.append(f"  {number:>3} {stage['id']:<{ids}}  {stage['use']:<{uses}}  {origin}")
    for name, use in account["observers"].items():
        lines.append(f"  observer  {name}: {use}")
    return [*lines, "ok"]

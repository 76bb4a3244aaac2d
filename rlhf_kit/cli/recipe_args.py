"""The arguments of every verb that takes a recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from rlhf_kit.plugins import LoadedPlugins

OVERRIDES_HELP = """
    OVERRIDES change single values of the recipe: KEY=VALUE, where KEY starts with a top-level key
    or the id of a stage, and VALUE is YAML. For example: seed=1 ppo.kl.coef=0.05 memory.use=lora
    (which also drops the options of the memory strategy it replaces).
"""


def recipe_args(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add RECIPE, OVERRIDES and --plugin to a click command."""
    command = plugin_option(command)
    command = click.argument("overrides", nargs=-1, metavar="[OVERRIDES]...")(command)
    return click.argument("recipe", type=click.Path(path_type=Path), metavar="RECIPE")(command)


def tell_broken(loaded: LoadedPlugins) -> None:
    """Say which installed plugins failed to load; the recipe is right without them."""
    for plugin in loaded.broken:
        click.echo(
            f"warning: plugin {plugin.name!r} of {plugin.package!r} failed to load, and nothing of "
            f"it can be used: {plugin.cause}",
            err=True,
        )


def plugin_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --plugin FILE."""
    return click.option(
        "--plugin",
        "plugin_files",
        multiple=True,
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Also load this plugin file (.py); may be given several times.",
    )(command)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)

"""`rlhf-kit plugins`: what is installed, and what its options are."""

from __future__ import annotations

import json
from pathlib import Path

import click

from rlhf_kit.cli.lazy import LazyGroup
from rlhf_kit.cli.option_rows import option_rows
from rlhf_kit.cli.recipe_args import json_option, plugin_option
from rlhf_kit.cli.table import show_table
from rlhf_kit.components import Component
from rlhf_kit.errors import PluginError, RecipeError, did_you_mean
from rlhf_kit.plugins import load_plugins
from rlhf_kit.registry import Registry


@click.group(
    cls=LazyGroup,
    lazy={
        "list": ("rlhf_kit.cli.plugins:list_components", "List all components and their package."),
        "show": ("rlhf_kit.cli.plugins:show", "Show the options of one component."),
    },
)
def plugins() -> None:
    """See what can be used in a recipe, and what installed plugin it comes from."""


_seam_option = click.option("--seam", metavar="SEAM", help="Only this kind: stage, loss, data, ...")


@click.command("list")
@_seam_option
@plugin_option
@json_option
def list_components(seam: str | None, plugin_files: tuple[Path, ...], as_json: bool) -> None:
    """List every component by seam, and every plugin that failed to load with its exception."""
    loaded = load_plugins(plugin_files)
    registry = Registry(loaded)
    _check_seam(registry, seam)
    rows = [
        {"seam": c.seam, "name": c.name, "package": package, "summary": c.summary}
        for package, _, c in registry.all()
        if seam in (None, c.seam)
    ]
    broken = [
        {"plugin": b.name, "package": b.package, "error": b.cause}
        for b in sorted(loaded.broken, key=lambda b: (b.package, b.name))
    ]
    unused = registry.unused(seam)
    if as_json:
        found = {"components": rows, "broken": broken, "unused": unused}
        click.echo(json.dumps(found, indent=2))
        return
    show_table(["SEAM", "NAME", "PACKAGE", "SUMMARY"], [list(row.values()) for row in rows])
    for line in unused:
        click.echo(line)
    if broken:
        click.echo("\nfailed to load:")
        for item in broken:
            click.echo(f"  {item['package']} (plugin {item['plugin']}): {item['error']}")


@click.command()
@click.argument("name")
@_seam_option
@plugin_option
@json_option
def show(name: str, seam: str | None, plugin_files: tuple[Path, ...], as_json: bool) -> None:
    """Show the options of component NAME (or PACKAGE/NAME): type, default, range, meaning."""
    registry = Registry(load_plugins(plugin_files))
    _check_seam(registry, seam)
    package, component = _find(registry, name, seam)
    rows = option_rows(component.options)
    if as_json:
        about = {
            "seam": component.seam,
            "name": component.name,
            "package": package,
            "summary": component.summary,
            "produces": component.produces,
            "target": component.target,
        }
        click.echo(json.dumps(about | {"options": rows}, indent=2))
        return
    click.echo(f"{component.seam} {component.name} (package {package})")
    if component.summary:
        click.echo(component.summary)
    if component.produces:
        click.echo(f"produces: {component.produces}")
    click.echo(f"target: {component.target}\n")
    if rows:
        headers = ["KEY", "TYPE", "DEFAULT", "RANGE", "EFFECT", "DESCRIPTION"]
        show_table(headers, [list(row.values()) for row in rows])
    else:
        click.echo("no options")


def _check_seam(registry: Registry, seam: str | None) -> None:
    if seam is not None and seam not in registry.seams():
        seams = registry.seams()
        near = did_you_mean(seam, seams)
        raise RecipeError(f"--seam: no seam is called {seam!r}{near}; seams: {', '.join(seams)}")


def _find(registry: Registry, name: str, seam: str | None) -> tuple[str, Component]:
    """The one component that is meant; a name may be used by several seams."""
    bare = name.rpartition("/")[2]
    seams = sorted({c.seam for _, _, c in registry.all() if c.name == bare})
    seams = [seam] if seam is not None else seams
    if len(seams) > 1:
        raise RecipeError(
            f"plugins show: {bare!r} is the name of several: {', '.join(seams)}; "
            f"add --seam {seams[0]}"
        )
    if not seams:
        names = sorted({c.name for _, _, c in registry.all()})
        what = f"plugins show: no component is called {bare!r}{did_you_mean(bare, names)}"
        broken = registry.loaded.broken
        if broken:
            causes = "; ".join(f"{b.name} of {b.package}: {b.cause}" for b in broken)
            raise PluginError(f"{what}; plugins that failed to load: {causes}")
        raise RecipeError(f"{what}; see `rlhf-kit plugins list`")
    component, package = registry.find(seams[0], name, "plugins show", name)
    return package, component

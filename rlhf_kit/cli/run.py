"""`rlhf-kit run`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from rlhf_kit.cli.recipe_args import OVERRIDES_HELP, json_option, recipe_args, tell_broken


@click.command(
    help=f"""Run RECIPE; stages that are finished already are not run again.

    {OVERRIDES_HELP}

    Ctrl-C, SIGTERM and SIGHUP save a checkpoint; the same command goes on from there.
    """
)
@recipe_args
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The run folder.  [default: runs/<name of the recipe>]",
)
@json_option
def run(
    recipe: Path,
    overrides: tuple[str, ...],
    plugin_files: tuple[Path, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    from rlhf_kit.recipe import open_recipe

    resolved, loaded, _ = open_recipe(recipe, overrides, plugin_files)
    tell_broken(loaded)

    # Only now, when the recipe is known to be right: this imports torch.
    from rlhf_kit.engine.signals import StopRequests
    from rlhf_kit.run import run_recipe

    requests = StopRequests()
    # When the line that answers has been written: what closes a terminal sends more than one.
    click.get_current_context().find_root().call_on_close(requests.leave)
    plain = as_json or not sys.stdout.isatty()
    summary = run_recipe(resolved, loaded, out=out, plain=plain, requests=requests)
    if as_json:
        click.echo(json.dumps(summary, indent=2))

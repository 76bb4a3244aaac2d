"""`rlhf-kit superseded`: results that a changed recipe has set aside."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import click

from rlhf_kit.cli.recipe_args import json_option
from rlhf_kit.cli.table import show_table
from rlhf_kit.errors import DataError, RecipeError
from rlhf_kit.run_folder import MANIFEST, RECORD, read_record, superseded as folders_of
from rlhf_kit.run_lock import locked

_FINISHED = {True: "yes", False: "no", None: "damaged"}


@click.command()
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option("--prune", is_flag=True, help="Delete them.")
@json_option
def superseded(run: Path, prune: bool, as_json: bool) -> None:
    """List what changed recipes have set aside in the run folder RUN.

    A result that is listed can be started from (`from: RUN/superseded/ppo-1`). No run reads one by
    itself.
    """
    if not (run / MANIFEST).is_file():
        raise RecipeError(f"{run}: is no run folder; it has no {MANIFEST}")
    found = [_account(folder) for folder in folders_of(run)]
    if prune:
        with locked(run):  # a run may be setting one aside, or be starting from one
            for item in found:
                shutil.rmtree(item["folder"])
    if as_json:
        click.echo(json.dumps({"pruned": prune, "superseded": found}, indent=2))
        return
    if not found:
        click.echo("nothing is set aside")
        return
    rows = [[i["folder"], _FINISHED[i["finished"]], f"{i['mib']:.1f}", i["changed"]] for i in found]
    show_table(["FOLDER", "FINISHED", "MIB", "LAST WRITTEN"], rows)
    if prune:
        click.echo(f"deleted, {sum(item['mib'] for item in found):.1f} MiB")


def _account(folder: Path) -> dict[str, Any]:
    try:
        record = read_record(folder / RECORD)
    except DataError:  # or of another version; it can be looked at and pruned all the same
        record = {}
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    when = time.localtime((folder / RECORD).stat().st_mtime)
    return {
        "folder": str(folder),
        "stage": record.get("stage"),
        "finished": record.get("finished"),
        "fingerprint": record.get("fingerprint"),
        "damaged": not record,
        "mib": size / 2**20,
        "changed": time.strftime("%Y-%m-%d %H:%M", when),
    }

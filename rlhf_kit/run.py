"""From a resolved recipe to finished stages: the one place where recipe and engine meet."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_kit import manifest
from rlhf_kit.context import RunContext
from rlhf_kit.engine.checkpoint import write_atomically, write_json
from rlhf_kit.engine.metrics import MetricsFile, finite, peak_rss_mib
from rlhf_kit.engine.progress import Console
from rlhf_kit.engine.stage_run import StageExecution
from rlhf_kit.errors import DataError, Interrupted, RlhfKitError
from rlhf_kit.interfaces import Stage
from rlhf_kit.plugins import LoadedPlugins
from rlhf_kit.recipe import Recipe, dump_yaml
from rlhf_kit.stage_record import StageRecord
from rlhf_kit.summary import closing_table, summarise

# Below this much free space a run would only fail later, with less to show for it.
LEAST_FREE_MIB = 64


def run_recipe(
    recipe: Recipe, loaded: LoadedPlugins, *, out: Path | None = None, plain: bool = False
) -> dict[str, Any]:
    """Run every stage that is not finished in ``out`` and return the summary.

    Every stage is built before the first one runs, so that what is wrong with the data, a reward
    or a reference is said before a model is loaded.

    Args:
        recipe: from :func:`rlhf_kit.recipe.open_recipe`.
        loaded: the plugins it was resolved with; their observers are called.
        out: the run folder; ``runs/<name>`` by default.
        plain: plain lines even on a terminal.

    Raises:
        RlhfKitError: with the exit code of its class; what is finished stays finished.
    """
    begin = time.monotonic()
    console = Console(plain=plain)
    folder = (out or Path("runs") / recipe.name).resolve()
    _check_disk(folder)
    context = RunContext(recipe, folder)
    stages = {id: context.build_stage(stage) for id, stage in recipe.stages.items()}
    records = context.records(loaded)
    todo = _plan(records, console)
    write_atomically(folder / "recipe.yaml", lambda f: f.write(dump_yaml(recipe).encode()))
    write_json(folder / "manifest.json", manifest.describe(recipe, loaded, records))
    spent_before = sum(record.seconds for record in records.values())
    with _announced(loaded, folder, recipe):
        for id in todo:
            _run_stage(id, stages.pop(id), records[id], recipe, loaded, folder, console)
    total = spent_before + time.monotonic() - begin
    summary = summarise(recipe, records, total, peak_rss_mib())
    write_json(folder / "summary.json", summary)
    console.table(f"{recipe.name}: {folder}", closing_table(summary))
    return summary


def _check_disk(folder: Path) -> None:
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free / 2**20
    if free < LEAST_FREE_MIB:
        raise DataError(
            f"{folder}: no space left on the disk ({free:.0f} MiB free, at least "
            f"{LEAST_FREE_MIB} needed); free some space or choose another --out"
        )


def _plan(records: dict[str, StageRecord], console: Console) -> list[str]:
    """The stages to run. A stage that changed is moved aside, never deleted."""
    todo = []
    for id, record in records.items():
        if record.finished:
            console.line(f"[{id}] finished already")
            continue
        if record.changed:
            moved = record.set_aside()
            console.line(f"[{id}] the recipe has changed; the earlier result is kept in {moved}")
        todo.append(id)
    return todo


@contextmanager
def _announced(loaded: LoadedPlugins, folder: Path, recipe: Recipe) -> Iterator[None]:
    loaded.hook.rlhf_run_started(folder=folder, recipe=recipe)
    error: BaseException | None = None
    try:
        yield
    except BaseException as caught:
        error = caught
        raise
    finally:
        loaded.hook.rlhf_run_ended(folder=folder, error=error)


def _run_stage(
    id: str,
    stage: Stage,
    record: StageRecord,
    recipe: Recipe,
    loaded: LoadedPlugins,
    folder: Path,
    console: Console,
) -> None:
    begin = time.monotonic()
    record.begin()
    execution = StageExecution(
        id,
        record.folder,
        seed=recipe.seed,
        metrics=MetricsFile(folder / "metrics.jsonl"),
        console=console,
        observers=loaded.hook,
    )
    loaded.hook.rlhf_stage_started(stage=id, folder=record.folder)
    try:
        summary = finite(stage.run(execution))
    except BaseException as error:
        with contextlib.suppress(OSError, DataError):  # the first error is the one to report
            record.stop(time.monotonic() - begin)
        if isinstance(error, RlhfKitError):
            raise type(error)(_located(error, id)) from error
        raise
    record.finish(summary, time.monotonic() - begin)
    execution.finish()
    loaded.hook.rlhf_stage_ended(stage=id, folder=record.folder, summary=summary)
    console.line(f"[{id}] done in {record.seconds:.0f} s")
    if execution.interrupted:
        raise Interrupted(f"stopped after stage {id!r}; the same command goes on from here")


def _located(error: RlhfKitError, id: str) -> str:
    text = str(error)
    return text if f"stage {id!r}" in text else f"stage {id!r}: {text}"

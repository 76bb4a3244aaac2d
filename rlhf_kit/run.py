"""From a resolved recipe to finished stages: the one place where recipe and engine meet."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_kit import manifest
from rlhf_kit.context import RunContext
from rlhf_kit.engine.checkpoint import write_atomically, write_json, writing
from rlhf_kit.engine.metrics import MetricsFile, peak_rss_mib, reset_peak_rss
from rlhf_kit.engine.observing import Observers
from rlhf_kit.engine.outcome import outcome
from rlhf_kit.engine.progress import Console
from rlhf_kit.engine.release import release_memory
from rlhf_kit.engine.signals import StopRequests
from rlhf_kit.engine.stage_run import StageExecution
from rlhf_kit.errors import DataError, Interrupted, RlhfKitError, interruption
from rlhf_kit.file_system import check_places
from rlhf_kit.interfaces import Observer, Stage
from rlhf_kit.plugins import LoadedPlugins
from rlhf_kit.recipe import Recipe, dump_yaml
from rlhf_kit.recipe.walk import refs_of
from rlhf_kit.run_folder import (
    CHECKPOINTS,
    MANIFEST,
    METRICS,
    SUMMARY,
    places,
    read_record,
    sealed,
)
from rlhf_kit.run_lock import locked
from rlhf_kit.stage_record import StageRecord
from rlhf_kit.summary import closing_table, summarise

# Below this much free space a run would only fail later, with less to show for it.
LEAST_FREE_MIB = 64


def run_recipe(
    recipe: Recipe,
    loaded: LoadedPlugins,
    *,
    out: Path | None = None,
    plain: bool = False,
    requests: StopRequests | None = None,
) -> dict[str, Any]:
    """Run every stage that is not finished in ``out`` and return the summary.

    Every stage that will run is built before the first one does, so that what is wrong with the
    data, a reward or a reference is said before a model is loaded. Nothing in the folder changes
    until a stage begins to write: what is refused before that costs nothing.

    Args:
        recipe: from :func:`rlhf_kit.recipe.open_recipe`.
        loaded: the plugins it was resolved with, for the manifest.
        out: the run folder; ``runs/<name>`` by default.
        plain: plain lines even on a terminal.
        requests: what asks the run to stop; its owner restores the handlers of signals, by default
            this function does.

    Raises:
        RlhfKitError: with the exit code of its class; what is finished stays finished.
    """
    begin = time.monotonic()
    console = Console(plain=plain)
    folder = (out or Path("runs") / recipe.name).resolve()
    _check_disk(folder)
    with contextlib.ExitStack() as stack:
        requests = requests or stack.enter_context(StopRequests())
        stack.enter_context(locked(folder))
        return _run(recipe, loaded, folder, console, begin, requests)


def _run(
    recipe: Recipe,
    loaded: LoadedPlugins,
    folder: Path,
    console: Console,
    begin: float,
    requests: StopRequests,
) -> dict[str, Any]:
    check_places(*places(folder, recipe.stages))
    context = RunContext(recipe, folder)
    with context.running():
        return _run_stages(context, loaded, console, begin, requests)


def _run_stages(
    context: RunContext,
    loaded: LoadedPlugins,
    console: Console,
    begin: float,
    requests: StopRequests,
) -> dict[str, Any]:
    recipe, folder = context.recipe, context.folder
    records = context.records()
    todo = [id for id, record in records.items() if not record.finished]
    stages = {id: context.build_stage(recipe.stages[id]) for id in todo}
    for ref in [ref for id in todo for ref in refs_of(recipe.stages[id].part)]:
        context.artifact(ref)  # what they read of stages that are done is whole
    observers = Observers(context.build_observers(console.line), console.line)
    attempt = Attempt(recipe, loaded, folder, records, todo)
    for id in records:
        if id not in todo:
            console.line(f"[{id}] finished already")
            shutil.rmtree(records[id].folder / CHECKPOINTS, ignore_errors=True)  # of a kill
    spent_before = sum(record.seconds for record in records.values())
    with _announced(observers, folder, recipe):
        for id in todo:
            release_memory()  # what building, or the stage before, has left behind
            with context.running(id):
                _run_stage(id, stages.pop(id), records[id], attempt, console, observers, requests)
    attempt.agree()
    total = spent_before + time.monotonic() - begin
    summary = summarise(recipe, records, total)
    write_json(folder / SUMMARY, summary)
    console.table(f"{recipe.name}: {folder}", closing_table(summary))
    return summary


def _check_disk(folder: Path) -> None:
    with writing(folder):
        existing = next(p for p in (folder, *folder.parents) if p.exists())
        free = shutil.disk_usage(existing).free / 2**20
    if free < LEAST_FREE_MIB:
        raise DataError(
            f"{folder}: no space left on the disk ({free:.0f} MiB free, at least "
            f"{LEAST_FREE_MIB} needed); free some space or choose another --out"
        )


class Attempt:
    """One call of `run` on a folder. It leaves the folder alone until a stage begins to write."""

    def __init__(
        self,
        recipe: Recipe,
        loaded: LoadedPlugins,
        folder: Path,
        records: dict[str, StageRecord],
        todo: Sequence[str],
    ) -> None:
        self.recipe, self.folder = recipe, folder
        before = read_record(folder / MANIFEST)
        self._manifest = manifest.describe(recipe, loaded, records, todo, before)
        self._begun = False

    @property
    def number(self) -> int:
        return len(self._manifest["attempts"])

    def metrics(self, record: StageRecord) -> MetricsFile:
        stamp = {
            "run": self._manifest["run"],
            "attempt": self.number,
            "fingerprint": record.fingerprint[:12],
        }
        return MetricsFile(self.folder / METRICS, stamp)

    def agree(self) -> None:
        """At the end: the folder says whose results it holds, also where nothing had to run."""
        now = read_record(self.folder / MANIFEST)
        if now.get("fingerprints") != self._manifest["fingerprints"]:
            self.begin()

    def begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        text = dump_yaml(self.recipe).encode()
        write_atomically(self.folder / "recipe.yaml", lambda f: f.write(text))
        write_json(self.folder / MANIFEST, sealed(self._manifest))
        (self.folder / SUMMARY).unlink(missing_ok=True)  # of what is now being replaced


@contextmanager
def _announced(observers: Observer, folder: Path, recipe: Recipe) -> Iterator[None]:
    observers.run_started(folder, recipe)
    error: BaseException | None = None
    try:
        yield
    except BaseException as caught:
        error = caught
        raise
    finally:
        observers.run_ended(folder, error)


def _run_stage(
    id: str,
    stage: Stage,
    record: StageRecord,
    attempt: Attempt,
    console: Console,
    observers: Observer,
    requests: StopRequests,
) -> None:
    started, metrics = time.monotonic(), attempt.metrics(record)

    def begin() -> None:
        attempt.begin()
        if record.changed:
            what = f"what it depends on has changed ({', '.join(record.changes())})"
            # Before the folder moves, so that a kill in between loses nothing.
            rows = b"".join(metrics.rows(id))
            write_atomically(record.folder / METRICS, lambda file: file.write(rows))
            moved = record.set_aside()
            console.line(f"[{id}] {what}; the earlier result is kept in {moved}")
        for change in record.execution_changes():
            console.line(f"[{id}] goes on with {change}: the same result but for rounding")
        record.begin(attempt.number)
        observers.stage_started(id, record.folder)

    execution = StageExecution(
        id,
        record.folder,
        seed=attempt.recipe.seed,
        metrics=metrics,
        console=console,
        observers=observers,
        begin=begin,
        checkpoint=attempt.recipe.checkpoint,
        requests=requests,
        fresh=record.changed,
    )
    try:
        summary = outcome(stage, execution)
        execution.begin()  # a stage may have nothing to write
    except BaseException as error:
        if execution.begun:
            with contextlib.suppress(OSError, DataError):  # the first error is the one to report
                record.stop(time.monotonic() - started, peak_rss_mib())
        left = interruption(error)
        if left is not None:
            left.add_note(f"in stage {id!r}, {execution.saved}")
            raise left from None
        if isinstance(error, Exception):
            execution.save_before_step()
        if isinstance(error, RlhfKitError):
            located = type(error)(_located(error, id))
            located.exit_code = error.exit_code
            raise located from error
        raise
    record.finish(summary, time.monotonic() - started, peak_rss_mib())
    reset_peak_rss()  # the next stage's own; the first one's has the set-up in it
    execution.finish()
    observers.stage_ended(id, record.folder, summary)
    console.line(f"[{id}] done in {record.seconds:.0f} s")
    if requests.signum is not None:
        text = f"stopped after stage {id!r}; the same command goes on from here"
        raise Interrupted(text, requests.signum)


def _located(error: RlhfKitError, id: str) -> str:
    text = str(error)
    key = [*text.split(": "), ""][1]  # after the place in the recipe, where there is one
    named = f"stage {id!r}" in text or f"{key}.".startswith(f"stages.{id}.")
    return text if named else f"stage {id!r}: {text}"

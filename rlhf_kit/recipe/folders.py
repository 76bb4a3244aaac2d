"""Folders of other runs that a recipe starts from."""

from __future__ import annotations

from pathlib import Path

from rlhf_kit.errors import RecipeError
from rlhf_kit.run_folder import MANIFEST, RECORD, STAGES, read_record


def stage_folder(folder: Path, produces: str) -> Path:
    """The stage folder that ``folder`` is, or the last one in it, of an artifact ``produces``.

    A folder inside a finished stage's is taken for another artifact of the same kind, such as the
    weights before averaging in ``ppo/last``. In a run folder it is the last such stage of its
    present recipe, which must be finished; another one, or one set aside, must be named itself.

    Raises:
        RecipeError: no such folder, or nothing finished of that kind in it.
        DataError: it was written by another version.
    """
    if not folder.is_dir():
        raise RecipeError(f"{folder}: no such folder")
    if (folder / RECORD).is_file():
        return _checked(folder, produces)
    run = read_record(folder / MANIFEST)
    if run:
        stages = [folder / STAGES / id for id, kind in run["produces"].items() if kind == produces]
        if not stages:
            raise RecipeError(f"{folder}: no stage of that run produces a {produces}")
        # Never one before it instead: what a recipe means would depend on how far a run is.
        last, others = stages[-1], [s for s in stages[:-1] if not _wrong(s, produces)]
        wrong = _wrong(last, produces)
        if wrong is None:
            return last
        hint = f"; name {others[-1]} if that is meant" if others else ""
        raise RecipeError(f"{folder}: holds no finished {produces}: {last.name} {wrong}{hint}")
    weights, whole = _weights(folder), _weights(folder.parent)
    # Weights of the same kind have the same files; a critic's have a head of their own.
    if (folder.parent / RECORD).is_file() and weights and weights <= whole:
        _checked(folder.parent, produces)
        return folder
    raise RecipeError(f"{folder}: holds no finished {produces}")


def _weights(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.safetensors")}


def _checked(stage: Path, produces: str) -> Path:
    wrong = _wrong(stage, produces)
    if wrong:
        raise RecipeError(f"{stage}: holds no finished {produces}: it {wrong}")
    return stage


def _wrong(stage: Path, produces: str) -> str | None:
    """Why a stage folder does not hold a current result of that kind; None if it does."""
    record = read_record(stage / RECORD)
    if not record:
        return "has not run"
    if record["produces"] != produces:
        return f"produces {record['produces'] or 'nothing to start from'}"
    if not record["finished"]:
        return "is not finished"
    if stage.parent.name != STAGES:
        return None
    run = read_record(stage.parent.parent / MANIFEST)
    if run and run["fingerprints"].get(stage.name) != record["fingerprint"]:
        return "is of an earlier recipe, which the run has since left"
    return None

"""The layout of a run folder, and the format of its records. Torch-free."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf_kit.errors import DataError

FORMAT = 3  # of stage.json, manifest.json and checkpoints; raised when one of them changes
RECORD, MANIFEST = "stage.json", "manifest.json"
METRICS, SUMMARY = "metrics.jsonl", "summary.json"
STAGES, SUPERSEDED, OBSERVERS = "stages", "superseded", "observers"
CHECKPOINTS = "checkpoints"  # in the folder of a stage
SEAL = "sha256"  # the key of a record's own hash
_WITHOUT = {  # what helps where one is damaged
    RECORD: "remove the folder that it is in, and the stage runs again",
    MANIFEST: "remove that file: what is finished stays finished",
}


def read_record(path: Path) -> dict[str, Any]:
    """A stage.json or manifest.json; empty where there is none.

    Raises:
        DataError: another format than this version's, or a file that is not whole.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        whole = isinstance(found, dict) and found == sealed(found)
    except (ValueError, RecursionError):
        found, whole = None, False
    if isinstance(found, dict):
        check_format(path, found.get("format", 1))
    if not whole:
        raise DataError(f"{path}: is damaged, or was edited; {_WITHOUT[path.name]}")
    return dict(found)


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """``record``, which JSON can say, with the hash of its content."""
    content = {key: value for key, value in record.items() if key != SEAL}
    # As it will be read: JSON has no tuples and no keys but strings.
    content = json.loads(json.dumps(content))
    text = json.dumps(content, sort_keys=True)
    return content | {SEAL: hashlib.sha256(text.encode()).hexdigest()}


def places(run: Path, stages: Iterable[str]) -> tuple[list[Path], list[Path]]:
    """The folders and the files that a run of ``stages`` writes, or some of them."""
    own = [run / STAGES / id for id in stages]
    inner = [stage / CHECKPOINTS for stage in own]
    folders = [run, *(run / name for name in (STAGES, SUPERSEDED, OBSERVERS)), *own, *inner]
    files = [run / name for name in ("recipe.yaml", MANIFEST, METRICS, SUMMARY)]
    return folders, [*files, *(stage / RECORD for stage in own)]


def check_format(path: Path, found: Any) -> None:
    """Refuse what another version has written."""
    if found != FORMAT:
        raise DataError(
            f"{path}: is of format {found}, and this version of rlhf_kit reads and writes format "
            f"{FORMAT}; go on with the version that wrote it, or run into another folder (--out)"
        )


def superseded(run: Path) -> list[Path]:
    """The folders of results that were set aside, oldest first."""
    found = [path.parent for path in (run / SUPERSEDED).glob(f"*/{RECORD}")]
    return sorted(found, key=lambda folder: ((folder / RECORD).stat().st_mtime, folder.name))

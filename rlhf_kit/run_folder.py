"""The layout of a run folder, and the format of its records. Torch-free."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhf_kit.errors import DataError

FORMAT = 2  # of stage.json, manifest.json and checkpoints; raised when one of them changes
RECORD, MANIFEST = "stage.json", "manifest.json"
METRICS, SUMMARY = "metrics.jsonl", "summary.json"
STAGES, SUPERSEDED, OBSERVERS = "stages", "superseded", "observers"
CHECKPOINTS = "checkpoints"  # in the folder of a stage
_KEYS = {
    RECORD: ("stage", "produces", "finished", "fingerprint"),
    MANIFEST: ("run", "fingerprints", "produces", "attempts"),
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
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise DataError(f"{path}: is damaged; use another --out, or remove that folder")
    check_format(path, found.get("format", 1))
    missing = [key for key in _KEYS[path.name] if key not in found]
    if missing:
        raise DataError(f"{path}: is damaged, it lacks {', '.join(missing)}; use another --out")
    return found


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

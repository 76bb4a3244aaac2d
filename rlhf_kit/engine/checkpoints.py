"""The checkpoints of one stage: when one is due, which is the newest that is whole."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rlhf_kit.engine.checkpoint import load_checkpoint, save_checkpoint, write_json
from rlhf_kit.errors import DataError
from rlhf_kit.interfaces import Stateful
from rlhf_kit.stage_options import CheckpointOptions


class Checkpoints:
    """``<steps done>.pt``, and beside each a record of its content, which is written last.

    Args:
        folder: theirs alone; made with the first one.
        options: when, and how many.
    """

    def __init__(self, folder: Path, options: CheckpointOptions) -> None:
        self._folder, self._options = folder, options
        self._saved_at, self.last = time.monotonic(), 0  # steps done in the last one

    def __bool__(self) -> bool:
        """Whether there is one to go on from."""
        return bool(self._records())

    def _records(self) -> list[Path]:
        """Newest first."""
        return sorted(self._folder.glob("*.json"), key=lambda path: path.stem, reverse=True)

    def due(self, done: int) -> bool:
        """Whether the recipe wants one after ``done`` steps."""
        o = self._options
        late = o.minutes is not None and time.monotonic() - self._saved_at > 60 * o.minutes
        return late or (o.steps is not None and done % o.steps == 0)

    def save(self, done: int, state: Mapping[str, Stateful]) -> Path:
        """Write one, and remove those that are older than the recipe keeps."""
        path = self._folder / f"{done:08}.pt"
        save_checkpoint(path, done, state)
        write_json(path.with_suffix(".json"), {"step": done, "sha256": _digest(path)})
        self._saved_at, self.last = time.monotonic(), done
        kept = {record.stem for record in self._records()[: self._options.keep]}
        for old in self._folder.iterdir():
            if old.name.partition(".")[0] not in kept:
                old.unlink(missing_ok=True)
        return path

    def load(self, state: Mapping[str, Stateful], say: Callable[[str], None]) -> int:
        """Restore ``state`` from the newest that is whole; returns how many steps were done.

        Raises:
            DataError: none is whole, or it is of another format or other parts.
        """
        for record in self._records():
            path = record.with_suffix(".pt")
            if _whole(path, record):
                self._saved_at, self.last = time.monotonic(), load_checkpoint(path, state)
                return self.last
            say(f"{path} is damaged; trying the one before")
        raise DataError(
            f"{self._folder}: no checkpoint in it is whole; remove that folder, and the stage "
            "starts again"
        )

    def clear(self) -> None:
        """The artifact is complete: they have served."""
        for path in self._folder.glob("*") if self._folder.is_dir() else ():
            path.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _whole(path: Path, record: Path) -> bool:
    try:
        found = json.loads(record.read_text())
        return isinstance(found, dict) and found.get("sha256") == _digest(path)
    except (OSError, ValueError):
        return False

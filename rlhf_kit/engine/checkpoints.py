"""The checkpoints of one stage: when one is due, which is the newest that is whole."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from rlhf_kit.content import file_digest
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

    @property
    def newest(self) -> int:
        """Steps done in the newest; 0 where there is none."""
        return max((int(path.stem) for path in self._records()), default=0)

    def _records(self) -> list[Path]:
        """Newest first."""
        found = (path for path in self._folder.glob("*.json") if path.stem.isdecimal())
        return sorted(found, key=lambda path: path.stem, reverse=True)

    def due(self, done: int) -> bool:
        """Whether the recipe wants one after ``done`` steps."""
        o = self._options
        late = o.minutes is not None and time.monotonic() - self._saved_at > 60 * o.minutes
        return late or (o.steps is not None and done % o.steps == 0)

    def save(self, done: int, state: Mapping[str, Stateful]) -> Path:
        """Write one, and remove those that are older than the recipe keeps."""
        path = self._folder / f"{done:08}.pt"
        save_checkpoint(path, done, state)
        write_json(path.with_suffix(".json"), {"step": done, "sha256": file_digest(path)})
        self._saved_at, self.last = time.monotonic(), done
        kept = {record.stem for record in self._records()[: self._options.keep]}
        self._remove(path for path in self._folder.iterdir() if _number(path) not in kept)
        return path

    @staticmethod
    def _remove(paths: Iterable[Path]) -> None:
        for path in list(paths):
            with contextlib.suppress(OSError):  # not ours, or held open by a file system
                path.unlink()

    def load(self, state: Mapping[str, Stateful], say: Callable[[str], None]) -> int:
        """Restore ``state`` from the newest that is whole; returns how many steps were done.

        Raises:
            DataError: none is whole, or it is of another format or other parts.
        """
        for record in self._records():
            path = record.with_suffix(".pt")
            if _whole(path, record):
                # Or the damaged ones would be kept as the newest, and those to come removed.
                self._remove(p for p in self._folder.iterdir() if _number(p) > record.stem)
                self._saved_at, self.last = time.monotonic(), load_checkpoint(path, state)
                return self.last
            say(f"{path} is damaged; trying the one before")
        raise DataError(
            f"{self._folder}: no checkpoint in it is whole; remove that folder, and the stage "
            "starts again"
        )

    def clear(self) -> None:
        """The artifact is complete: they have served."""
        if self._folder.is_dir():
            self._remove(self._folder.iterdir())
            with contextlib.suppress(OSError):
                self._folder.rmdir()


def _number(path: Path) -> str:
    """Of a checkpoint, its record, or what a kill has left of one."""
    return path.name.lstrip(".").partition(".")[0]


def _whole(path: Path, record: Path) -> bool:
    try:
        found = json.loads(record.read_text())
        return isinstance(found, dict) and found.get("sha256") == file_digest(path)
    except (OSError, ValueError):
        return False

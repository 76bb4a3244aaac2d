"""stage.json: what a stage folder holds, and whether it is what the recipe asks for."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_kit.engine.checkpoint import write_json

RECORD = "stage.json"


@dataclass
class StageRecord:
    """The record of one stage in one run folder."""

    id: str
    folder: Path
    produces: str
    fingerprint: str  # of everything the result depends on
    found: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, id: str, folder: Path, produces: str, fingerprint: str) -> StageRecord:
        path = folder / RECORD
        found = json.loads(path.read_text()) if path.is_file() else {}
        return cls(id, folder, produces, fingerprint, found)

    @property
    def changed(self) -> bool:
        """There is something here, made from another recipe."""
        return bool(self.found) and self.found["fingerprint"] != self.fingerprint

    @property
    def finished(self) -> bool:
        return bool(self.found.get("finished")) and not self.changed

    @property
    def seconds(self) -> float:
        """Time spent on the stage, earlier attempts included."""
        return float(self.found.get("seconds", 0.0))

    @property
    def summary(self) -> dict[str, Any]:
        return dict(self.found.get("summary", {}))

    def set_aside(self) -> Path:
        """Move the folder out of the way; returns where to."""
        number = 1
        while (target := self.folder.with_name(f"{self.id}.superseded-{number}")).exists():
            number += 1
        self.folder.rename(target)
        self.found = {}
        return target

    def begin(self) -> None:
        self._write(finished=False, seconds=self.seconds)

    def stop(self, seconds: float) -> None:
        """The stage was interrupted or failed after ``seconds``."""
        self._write(finished=False, seconds=self.seconds + seconds)

    def finish(self, summary: dict[str, Any], seconds: float) -> None:
        self._write(finished=True, seconds=self.seconds + seconds, summary=summary)

    def _write(self, **values: Any) -> None:
        content = {"stage": self.id, "produces": self.produces, "fingerprint": self.fingerprint}
        self.found = content | values
        write_json(self.folder / RECORD, self.found)

"""stage.json: what a stage folder holds, and whether it is what the recipe asks for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_kit.engine.checkpoint import write_json
from rlhf_kit.integrity import file_digests
from rlhf_kit.run_folder import FORMAT, RECORD, SUPERSEDED, read_record, sealed


@dataclass
class StageRecord:
    """The record of one stage in one run folder."""

    id: str
    folder: Path
    produces: str
    depends: dict[str, str]  # what the result depends on, in words -> its hash
    execution: dict[str, Any] = field(default_factory=dict)  # options that change rounding at most
    found: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        id: str,
        folder: Path,
        produces: str,
        depends: dict[str, str],
        execution: dict[str, Any],
    ) -> StageRecord:
        found = read_record(folder / RECORD)
        return cls(id, folder, produces, depends, execution, found)

    @property
    def fingerprint(self) -> str:
        """One hash of everything the result depends on."""
        text = "".join(f"{what}: {self.depends[what]}\n" for what in sorted(self.depends))
        return hashlib.sha256(text.encode()).hexdigest()

    def changes(self) -> list[str]:
        """What, of all that the result depends on, is not as it was."""
        before = self.found.get("depends", {})
        return [what for what, digest in self.depends.items() if before.get(what) != digest]

    @property
    def changed(self) -> bool:
        """There is something here, made from another recipe."""
        return bool(self.found) and self.found["fingerprint"] != self.fingerprint

    @property
    def _own(self) -> dict[str, Any]:
        return {} if self.changed else self.found

    @property
    def finished(self) -> bool:
        return bool(self._own.get("finished"))

    @property
    def seconds(self) -> float:
        """Time spent on the stage, earlier attempts included."""
        return float(self._own.get("seconds", 0.0))

    @property
    def peak_rss_mib(self) -> float:
        """The largest resident set of a process while it ran the stage."""
        return float(self._own.get("peak_rss_mib", 0.0))

    @property
    def summary(self) -> dict[str, Any]:
        return dict(self._own.get("summary", {}))

    def execution_changes(self) -> list[str]:
        """What differs from the attempt before, such as "micro_batch 8 (was 16)"."""
        attempts = self._own.get("attempts", [])
        before = attempts[-1]["execution"] if attempts else self.execution
        return [
            f"{key} {value} (was {before.get(key)})"
            for key, value in self.execution.items()
            if before.get(key) != value
        ]

    def set_aside(self) -> Path:
        """Move the folder out of the way; returns where to."""
        aside = self.folder.parent.parent / SUPERSEDED
        aside.mkdir(exist_ok=True)
        number = 1
        while (target := aside / f"{self.id}-{number}").exists():
            number += 1
        self.folder.rename(target)
        self.found = {}
        return target

    def begin(self, attempt: int) -> None:
        """``attempt`` goes on with the stage, or begins it."""
        this = {"attempt": attempt, "execution": self.execution}
        self._write(attempts=[*self._own.get("attempts", []), this])

    def stop(self, seconds: float, peak_rss_mib: float) -> None:
        """The stage was interrupted or failed after ``seconds``."""
        self._write(**self._spent(seconds, peak_rss_mib))

    def finish(self, summary: dict[str, Any], seconds: float, peak_rss_mib: float) -> None:
        """The result is complete. What it consists of is noted, and checked before it is read."""
        files = file_digests(self.folder)
        spent = self._spent(seconds, peak_rss_mib)
        self._write(finished=True, summary=summary, files=files, **spent)

    def _spent(self, seconds: float, peak: float) -> dict[str, Any]:
        return {
            "seconds": self.seconds + seconds,
            "peak_rss_mib": round(max(self.peak_rss_mib, peak), 1),
        }

    def _write(self, **values: Any) -> None:
        content = {
            "format": FORMAT,
            "stage": self.id,
            "produces": self.produces,
            "fingerprint": self.fingerprint,
            "depends": self.depends,
            "finished": False,
            "seconds": 0.0,
        }
        self.found = sealed(content | self._own | values)
        write_json(self.folder / RECORD, self.found)

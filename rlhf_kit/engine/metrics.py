"""metrics.jsonl: one JSON object per step, for every stage of a run."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class MetricsFile:
    """Appends to ``metrics.jsonl``. After a resume the last row of a step counts."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Append one row; a value that is not finite becomes null, which JSON can say."""
        row: dict[str, Any] = {"stage": stage, "step": step, "time": round(time.time(), 3)}
        row |= {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def peak_rss_mib() -> float:
    """The largest resident set this process has had, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)

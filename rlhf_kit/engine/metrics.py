"""metrics.jsonl: one JSON object per step, for every stage of a run."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def finite(value: Any) -> Any:
    """``value`` with every number that is not finite as None, which JSON can say."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class MetricsFile:
    """Appends to ``metrics.jsonl``. After a resume the last row of a step counts."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Append one row."""
        row: dict[str, Any] = {"stage": stage, "step": step, "time": round(time.time(), 3)}
        row |= finite(dict(metrics))
        # Unbuffered, so that a full disk is noticed here and a row cut short can be taken back.
        with self._path.open("a+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            # A kill may have cut the last row short: it must not swallow this one.
            cut = end and (file.seek(end - 1), file.read(1))[1] != b"\n"
            data = (b"\n" if cut else b"") + json.dumps(row).encode() + b"\n"
            try:
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            except OSError:
                file.truncate(end)
                raise


def peak_rss_mib() -> float:
    """The largest resident set this process has had, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)

"""metrics.jsonl: one JSON object per step, for every stage of a run."""

from __future__ import annotations

import contextlib
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

from rlhf_kit.engine.checkpoint import write_atomically, writing


def finite(value: Any) -> Any:
    """``value`` with every number that is not finite as None, which JSON can say."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class MetricsFile:
    """Appends to ``metrics.jsonl``, and holds one row for each step of a stage's present result.

    Args:
        path: of the file.
        stamp: what every row says of where it is from: run, attempt and fingerprint.
    """

    def __init__(self, path: Path, stamp: Mapping[str, Any]) -> None:
        self._path, self._stamp = path, dict(stamp)

    def write(self, stage: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one row.

        Raises:
            DataError: it cannot be written; the rows before it are as they were.
        """
        row: dict[str, Any] = {"stage": stage, "step": step, "time": round(time.time(), 3)}
        row |= self._stamp | finite(dict(metrics))
        # Unbuffered, so that a full disk is noticed here and a row cut short can be taken back.
        with writing(self._path), self._path.open("a+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            # A kill may have cut the last row short: it must not swallow this one.
            cut = end and (file.seek(end - 1), file.read(1))[1] != b"\n"
            data = (b"\n" if cut else b"") + json.dumps(row, ensure_ascii=False).encode() + b"\n"
            try:
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            except OSError:
                with contextlib.suppress(OSError):  # a disk that fails may refuse this too
                    file.truncate(end)
                raise

    def rows(self, stage: str) -> list[bytes]:
        """The rows of a stage, as they stand in the file."""
        return [row for row, place in self._read() if place is not None and place[0] == stage]

    def cut(self, stage: str, step: int = 0) -> None:
        """Take out the rows of a stage from ``step`` on.

        They are of an earlier result, or of steps that will be repeated. A row that a kill has cut
        short goes too.
        """
        found = self._read()
        kept = [row for row, place in found if place and (place[0] != stage or place[1] < step)]
        if len(kept) < len(found):
            write_atomically(self._path, lambda file: file.write(b"".join(kept)))

    def _read(self) -> list[tuple[bytes, tuple[str, int] | None]]:
        """Every line, with the stage and the step that it is of."""
        if not self._path.is_file():
            return []
        lines = self._path.read_bytes().splitlines(keepends=True)
        return [(line, _place(line)) for line in lines]


def _place(row: bytes) -> tuple[str, int] | None:
    """Stage and step of a row; None for what is none."""
    try:
        value = json.loads(row)
        return str(value["stage"]), int(value["step"])
    except (ValueError, KeyError, TypeError):
        return None


def reset_peak_rss() -> None:
    """Let :func:`peak_rss_mib` begin anew, where the system can; else it stays the process's."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss_mib() -> float:
    """The largest resident set of this process since it was last reset, in MiB."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)

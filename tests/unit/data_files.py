"""Data files for tests, and what sources make of them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, Protocol

from rlhf_kit_data.options import JsonlOptions
from rlhf_kit_data.sources import Comparisons, Demonstrations, Prompts
from rlhf_kit_data.splits import SPLITS

from rlhf_kit.errors import DataError

Row = dict[str, Any]


class Source(Protocol):
    def split(self, name: str) -> Any: ...


def write_lines(path: Path, rows: list[Any]) -> Path:
    """A JSONL file, gzipped if its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def prompts(path: Path) -> Prompts:
    return Prompts(JsonlOptions(path=path))


def demonstrations(path: Path) -> Demonstrations:
    return Demonstrations(JsonlOptions(path=path))


def comparisons(path: Path) -> Comparisons:
    return Comparisons(JsonlOptions(path=path))


def by_split(source: Source) -> dict[str, list[Row]]:
    """The rows of every split; [] where there are none."""
    found: dict[str, list[Row]] = {}
    for name in SPLITS:
        try:
            found[name] = list(source.split(name))
        except DataError as error:
            if not str(error).endswith(f"no rows of split {name!r}"):
                raise
            found[name] = []
    return found


def typed(value: Any) -> str:
    """A text that tells 1 from 1.0 and from true, and null from nothing."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)

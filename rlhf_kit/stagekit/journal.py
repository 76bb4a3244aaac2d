"""Work that grows a list: what is done so far, and going on from there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_kit.interfaces import StageRun, Stateful


class Journal:
    """JSON-able rows written so far, as part of a checkpoint."""

    def __init__(self) -> None:
        self.lines: list[str] = []  # one row each, as JSON

    def add(self, *rows: Any) -> None:
        self.lines += [json.dumps(row, ensure_ascii=False) for row in rows]

    def __len__(self) -> int:
        return len(self.lines)

    def __iter__(self) -> Iterator[Any]:
        """The rows, read back."""
        return map(json.loads, self.lines)

    def state_dict(self) -> dict[str, Any]:
        return {"lines": self.lines}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.lines = list(state["lines"])


class _Place:
    """How many are done."""

    def __init__(self) -> None:
        self.done = 0

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done = state["done"]


def in_chunks(
    run: StageRun, total: int, size: int, state: Mapping[str, Stateful], unit: str
) -> Iterator[range]:
    """``run.steps`` over ``total`` things, about ``size`` of them at a time.

    The last of a chunk is the step that it ends. Steps count things and not chunks, so that a run
    may go on with chunks of another size.
    """
    place = _Place()
    for step in run.steps(total, {**state, "place": place}, unit):
        if step + 1 < min(place.done + size, total):
            continue
        yield range(place.done, step + 1)
        place.done = step + 1

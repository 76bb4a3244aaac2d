"""Rows of data, and where each was read. Torch-free."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


class PlacedRow(Row):
    """A row that knows where it was read, "prompts.jsonl:12", for a message about it."""

    def __init__(self, values: Row, where: str) -> None:
        super().__init__(values)
        self.where = where

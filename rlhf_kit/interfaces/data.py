"""Data sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rlhf_kit.types.samples import Row


class DataSource(Protocol):
    ready: bool  # False while an earlier stage has yet to write the rows

    def split(self, name: str) -> Sequence[Row]:
        """The rows of "train", "validation" or "test"; DataError when there are none."""

    def fingerprint(self) -> str:
        """A hash of the content."""

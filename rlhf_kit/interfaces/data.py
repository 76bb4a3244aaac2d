"""Data sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from rlhf_kit.types import Row


class DataSource(Protocol):
    """Rows by split. Building one reads nothing, so that a finished stage costs nothing."""

    @property
    def ready(self) -> bool:
        """False while an earlier stage has yet to write the rows."""

    def split(self, name: str) -> Sequence[Row]:
        """The rows of "train", "validation" or "test", read and checked on first use.

        A reader may change a row that it was given; no other reader sees that. No conversation,
        and none that begins like it, is in two splits. DataError when there are no rows.
        """

    def fingerprint(self) -> str:
        """A hash of all that the rows depend on, without reading them; cheap."""


@runtime_checkable
class DropsRows(Protocol):
    """A data source that leaves out rows that cannot be used, and counts them."""

    @property
    def dropped(self) -> Mapping[str, int]:
        """Reason -> how many; reads the rows."""

"""Rows by split, kept as they were written. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from rlhf_kit.errors import DataError
from rlhf_kit.rows import PlacedRow
from rlhf_kit_data.rows import Row
from rlhf_kit_data.splits import SPLITS, Key, Places


class Rows(Sequence[Row]):
    """Rows as JSON texts, each with its place in a file, "" for none.

    Each look at a row gives a new one, which its reader may change.
    """

    def __init__(self, texts: Sequence[tuple[bytes, str]]) -> None:
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def __iter__(self) -> Iterator[Row]:
        return map(_row, self._texts)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> Row | Rows:
        if isinstance(index, slice):
            return Rows(self._texts[index])
        return _row(self._texts[index])


def _row(written: tuple[bytes, str]) -> Row:
    text, where = written
    row: Row = json.loads(text)
    return PlacedRow(row, where) if where else row


class SplitTable:
    """``rows`` by the split of their keys, (key, place in a file, JSON text) each.

    No key is in two splits.

    A text keeps its row whatever the other rows look like, and is smaller than Python's objects.
    """

    def __init__(self, where: str, rows: Iterable[tuple[Key, str, bytes]], places: Places) -> None:
        self._where = where
        texts: dict[str, list[tuple[bytes, str]]] = {name: [] for name in SPLITS}
        for key, place, text in rows:
            texts[places.of(key)].append((text, place))
        self._rows = {name: Rows(found) for name, found in texts.items()}

    def split(self, name: str) -> Sequence[Row]:
        """The rows of a split. Raises DataError when there are none."""
        if not self._rows[name]:
            raise DataError(f"{self._where}: no rows of split {name!r}")
        return self._rows[name]

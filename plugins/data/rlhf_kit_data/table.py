"""Rows by split, kept as they were written. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from rlhf_kit.errors import DataError
from rlhf_kit_data.rows import Row
from rlhf_kit_data.splits import SPLITS, Key, Places


class Rows(Sequence[Row]):
    """Rows as JSON texts. Each look at a row gives a new one, which its reader may change."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def __iter__(self) -> Iterator[Row]:
        return map(json.loads, self._texts)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> Row | Rows:
        if isinstance(index, slice):
            return Rows(self._texts[index])
        row: Row = json.loads(self._texts[index])
        return row


class SplitTable:
    """``rows``, (key, JSON text) each, by the split of their keys; no key is in two splits.

    A text keeps its row whatever the other rows look like, and is smaller than Python's objects.
    """

    def __init__(self, where: str, rows: Iterable[tuple[Key, bytes]], places: Places) -> None:
        self._where = where
        texts: dict[str, list[bytes]] = {name: [] for name in SPLITS}
        for key, text in rows:
            texts[places.of(key)].append(text)
        self._rows = {name: Rows(found) for name, found in texts.items()}

    def split(self, name: str) -> Sequence[Row]:
        """The rows of a split. Raises DataError when there are none."""
        if not self._rows[name]:
            raise DataError(f"{self._where}: no rows of split {name!r}")
        return self._rows[name]

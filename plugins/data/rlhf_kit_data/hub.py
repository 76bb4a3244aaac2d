"""Data sets of the Hugging Face hub, as records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, TypeVar

import datasets

from rlhf_kit.errors import DataError
from rlhf_kit_data.layout import part_name
from rlhf_kit_data.records import Parts

T = TypeVar("T")


class HubData:
    """One commit of a data set: the one that ``revision`` means now, or offline, in the cache.

    Everything raises DataError, with the library's own reason, when it cannot be loaded.
    """

    def __init__(self, name: str, *, data_dir: str | None, revision: str | None) -> None:
        self._name, self._where = name, {"data_dir": data_dir, "revision": revision}

    @cached_property
    def _builder(self) -> Any:
        return self._try(lambda: datasets.load_dataset_builder(self._name, **self._where))

    @property
    def commit(self) -> str:
        """The hash of the commit; reads no rows."""
        return str(self._builder.hash)

    def parts(self, columns: tuple[str, ...]) -> Parts:
        """The records by split, downloaded unless they are in the cache; only ``columns``."""
        self._try(self._builder.download_and_prepare)
        tables: dict[str, Any] = dict(self._try(self._builder.as_dataset))
        parts: Parts = {}
        for split, table in tables.items():
            where = f"{self._name} ({split})"
            kept = table.select_columns([c for c in table.column_names if c in columns])
            part = part_name(split, where)
            parts[part] = [*parts.get(part, ()), *_records(where, kept)]
        return parts

    def _try(self, step: Callable[[], T]) -> T:
        try:
            return step()
        except Exception as error:
            cause = str(error).strip().partition("\n")[0]
            raise DataError(
                f"{self._name}: cannot be loaded from the Hugging Face hub: "
                f"{type(error).__name__}: {cause}; "
                f"`source` may also be a local file or folder of the same form"
            ) from error


def _records(where: str, table: Any) -> Iterator[tuple[str, Any]]:
    for number, record in enumerate(table, 1):
        yield f"{where}: row {number}", record

"""Data sets of the Hugging Face hub, as records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import datasets

from rlhf_kit.errors import DataError
from rlhf_kit_data.records import Parts, part_name


def hub_parts(
    name: str, columns: tuple[str, ...], *, data_dir: str | None, revision: str | None
) -> Parts:
    """The records of a data set by split, downloaded unless they are in the cache.

    Raises:
        DataError: it cannot be loaded; with the library's own reason.
    """
    try:
        loaded = datasets.load_dataset(name, data_dir=data_dir, revision=revision)
    except Exception as error:
        cause = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{name}: cannot be loaded from the Hugging Face hub: {type(error).__name__}: {cause}; "
            f"`source` may also be a local file or folder of the same form"
        ) from error
    tables: dict[str, Any] = dict(loaded)
    parts: Parts = {}
    for split, table in tables.items():
        kept = table.select_columns([c for c in table.column_names if c in columns])
        part = part_name(split)
        parts[part] = [*parts.get(part, ()), *_records(f"{name} ({split})", kept)]
    return parts


def _records(where: str, table: Any) -> Iterator[tuple[str, Any]]:
    for number, record in enumerate(table, 1):
        yield f"{where}: row {number}", record

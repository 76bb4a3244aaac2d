"""Rows by split, held by `datasets` as one Arrow table."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import pyarrow

from rlhf_kit.errors import DataError
from rlhf_kit.types.samples import Row
from rlhf_kit_data.splits import SPLITS


class SplitTable:
    """``rows``, of which the n-th belongs to the split ``names[n]``."""

    def __init__(self, where: str, rows: Sequence[Row], names: Sequence[str]) -> None:
        self._where = where
        try:
            self._table = datasets.Dataset.from_list(list(rows))
        except pyarrow.ArrowException as error:
            cause = str(error).splitlines()[0]
            raise DataError(
                f"{where}: a key holds values of different types ({cause}); use one type"
            ) from error
        self._places = {s: [i for i, n in enumerate(names) if n == s] for s in SPLITS}

    def split(self, name: str) -> Sequence[Row]:
        places = self._places[name]
        if not places:
            raise DataError(f"{self._where}: no rows of split {name!r}")
        # from_list gives every row every column; a key that a row did not have is None there.
        chosen = self._table.select(places).to_list()
        return [{k: v for k, v in row.items() if v is not None} for row in chosen]

"""Published comparisons over the `datasets` library: a local file or folder, or the hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import ClassVar

from rlhf_kit.types.samples import Row
from rlhf_kit_data.hub import hub_parts
from rlhf_kit_data.options import RankingsOptions
from rlhf_kit_data.rankings import FORMS, local_rankings, rankings
from rlhf_kit_data.splits import SPLITS
from rlhf_kit_data.table import SplitTable


class Published:
    """Comparisons in the form that one data set was published in.

    ``dropped`` counts by reason what of the source is in no split, except for ``limit``.
    """

    form: ClassVar[str]
    ready = True
    dropped: dict[str, int]

    def __init__(self, options: RankingsOptions) -> None:
        if options.path is not None:
            splits, self.dropped = local_rankings(self.form, options)
        else:
            parts = hub_parts(
                str(options.source),
                FORMS[self.form].columns,
                data_dir=options.data_dir,
                revision=options.revision,
            )
            splits, self.dropped = rankings(self.form, options, parts)
        rows = [row for name in SPLITS for row in splits[name]]
        names = [name for name in SPLITS for _ in splits[name]]
        self._table = SplitTable(str(options.source), rows, names)
        self._hash = hashlib.sha256(json.dumps([rows, names]).encode()).hexdigest()

    def split(self, name: str) -> Sequence[Row]:
        return self._table.split(name)

    def fingerprint(self) -> str:
        return self._hash


class HHRLHF(Published):
    form = "hh_rlhf"


class Oasst(Published):
    form = "oasst"

"""Published comparisons: a local file or folder, or the hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

from rlhf_kit_data.hub import HubData
from rlhf_kit_data.options import RankingsOptions
from rlhf_kit_data.rankings import FORMS, Rankings, local_rankings, rankings
from rlhf_kit_data.records import data_files, digest
from rlhf_kit_data.rows import Row, written
from rlhf_kit_data.table import SplitTable


class Published:
    """Comparisons in the form that one data set was published in, read on first use."""

    form: ClassVar[str]
    ready = True

    def __init__(self, options: RankingsOptions) -> None:
        self._options = options

    @cached_property
    def _hub(self) -> HubData:
        o = self._options
        return HubData(str(o.source), data_dir=o.data_dir, revision=o.revision)

    @cached_property
    def _read(self) -> tuple[SplitTable, dict[str, int]]:
        found = self._rankings()
        rows = ((key, "", written(row)) for key, row in found.rows)
        return SplitTable(str(self._options.source), rows, found.places), found.dropped

    def _rankings(self) -> Rankings:
        if self._options.path is not None:
            return local_rankings(self.form, self._options)
        return rankings(self.form, self._options, self._hub.parts(FORMS[self.form].columns))

    @property
    def dropped(self) -> dict[str, int]:
        """By reason, how much of the source is in no split, except for ``limit``."""
        return self._read[1]

    def split(self, name: str) -> Sequence[Row]:
        return self._read[0].split(name)

    def fingerprint(self) -> str:
        """A hash of the options and of all data files, or of the commit that the hub resolves."""
        path = self._options.path
        if path is None:
            content: object = [str(self._options.source), self._hub.commit]
        else:
            content = {str(file.relative_to(path)): digest(file) for file in data_files(path)}
        options = self._options.model_dump(mode="json", exclude={"source"})
        return hashlib.sha256(json.dumps([options, content]).encode()).hexdigest()


class HHRLHF(Published):
    form = "hh_rlhf"


class Oasst(Published):
    form = "oasst"

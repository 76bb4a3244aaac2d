"""Data sources of files in the project's own form, read on first use."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

from rlhf_kit.interfaces import Context
from rlhf_kit_data.options import CollectedOptions, JsonlOptions
from rlhf_kit_data.project import COLLECTED, read_placed
from rlhf_kit_data.records import digest
from rlhf_kit_data.rows import Row
from rlhf_kit_data.table import SplitTable


class Jsonl:
    """Rows of a JSONL file, each checked and kept as it is written."""

    kind: ClassVar[str]
    ready = True

    def __init__(self, options: JsonlOptions) -> None:
        self._path = options.path

    @cached_property
    def _table(self) -> SplitTable:
        found = read_placed(self._path, self.kind)
        return SplitTable(str(self._path), found.rows, found.places)

    def split(self, name: str) -> Sequence[Row]:
        return self._table.split(name)

    def fingerprint(self) -> str:
        return digest(self._path)


class Prompts(Jsonl):
    kind = "prompts"


class Demonstrations(Jsonl):
    kind = "demonstrations"


class Comparisons(Jsonl):
    kind = "comparisons"


class Collected(Comparisons):
    """The comparisons of a collect stage; they exist once it has run."""

    def __init__(self, options: CollectedOptions, context: Context) -> None:
        folder = context.artifact(options.start)
        assert folder is not None
        super().__init__(JsonlOptions(path=folder / COLLECTED))
        # What an earlier run of the same stage has left there may be about to be replaced.
        self.ready = options.start.stage is None
        self._seen = ""

    def split(self, name: str) -> Sequence[Row]:
        # The stage may have written the file anew since it was last looked at.
        content = digest(self._path)
        if content != self._seen:
            self.__dict__.pop("_table", None)
            self._seen = content
        return super().split(name)

    def fingerprint(self) -> str:
        # A stage of this recipe is part of the fingerprint of the one that reads it.
        return super().fingerprint() if self.ready else "collected"

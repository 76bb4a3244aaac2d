"""Data sources of files in the project's own format, and running text."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from rlhf_kit.errors import DataError, RecipeError
from rlhf_kit.interfaces import Context
from rlhf_kit.types.samples import Row
from rlhf_kit_data.options import CollectedOptions, JsonlOptions, TextOptions
from rlhf_kit_data.rows import read_rows
from rlhf_kit_data.splits import SPLITS, split_of
from rlhf_kit_data.table import SplitTable


class Jsonl:
    """Rows of a JSONL file, each checked, held by `datasets` as one Arrow table."""

    kind: ClassVar[str]
    ready = True

    def __init__(self, options: JsonlOptions) -> None:
        self._path = options.path
        rows = list(read_rows(self._path, self.kind))
        names = [row.pop("split", None) or split_of(_prompt_key(row)) for row in rows]
        self._table = SplitTable(str(self._path), rows, names)

    def split(self, name: str) -> Sequence[Row]:
        return self._table.split(name)

    def fingerprint(self) -> str:
        return hashlib.sha256(self._path.read_bytes()).hexdigest()


def _prompt_key(row: Row) -> str:
    return str(row.get("prompt") or row["messages"])


class Prompts(Jsonl):
    kind = "prompts"


class Demonstrations(Jsonl):
    kind = "demonstrations"


class Comparisons(Jsonl):
    kind = "comparisons"


class Collected:
    """The comparisons of a collect stage; they exist once it has run."""

    def __init__(self, options: CollectedOptions, context: Context) -> None:
        folder = context.artifact(options.start)
        assert folder is not None
        self._path: Path = folder / "comparisons.jsonl"
        # What an earlier run of the same stage has left there may be about to be replaced.
        self.ready = options.start.stage is None

    def split(self, name: str) -> Sequence[Row]:
        return Comparisons(JsonlOptions(path=self._path)).split(name)

    def fingerprint(self) -> str:
        # A stage of this recipe is part of the fingerprint of the one that reads it.
        return hashlib.sha256(self._path.read_bytes()).hexdigest() if self.ready else "collected"


class RunningText:
    """Documents of running text, split by document."""

    ready = True

    def __init__(self, options: TextOptions) -> None:
        if options.path is not None:
            paragraphs = options.path.read_text(encoding="utf-8").split("\n\n")
            documents = {str(i): text for i, text in enumerate(_merge(paragraphs))}
        else:
            documents = _topics(str(options.module))
        self._rows: dict[str, list[Row]] = {name: [] for name in SPLITS}
        for key, text in sorted(documents.items()):
            self._rows[split_of(key)].append({"text": text})
        self._where = str(options.path or options.module)
        digest = hashlib.sha256("\0".join(documents[k] for k in sorted(documents)).encode())
        self._hash = digest.hexdigest()

    def split(self, name: str) -> Sequence[Row]:
        if not self._rows[name]:
            raise DataError(f"{self._where}: too little text for a {name} split")
        return self._rows[name]

    def fingerprint(self) -> str:
        return self._hash


def _merge(paragraphs: Sequence[str], size: int = 2000) -> list[str]:
    """Neighbouring paragraphs joined into documents of about ``size`` characters."""
    documents, current = [], ""
    for paragraph in paragraphs:
        current += paragraph + "\n\n"
        if len(current) >= size:
            documents.append(current)
            current = ""
    return [*documents, current] if current.strip() else documents


def _topics(module: str) -> dict[str, str]:
    try:
        topics = importlib.import_module(module).topics
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"data: module {module!r} with a dict `topics`: {error}") from error
    return {str(key): str(text) for key, text in topics.items()}

"""Running text, read on first use."""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from rlhf_kit.errors import DataError, RecipeError
from rlhf_kit_data.options import TextOptions
from rlhf_kit_data.records import digest, exists, unreadable
from rlhf_kit_data.rows import Row, written
from rlhf_kit_data.splits import SPLITS, Key, Places, folded, key_of
from rlhf_kit_data.table import SplitTable

_GAP = re.compile(r"\n(?:[^\S\n]*\n)+")  # between paragraphs; an empty line may hold spaces
SIZE = 2000  # characters that a document of a file has at least, except for the last


class RunningText:
    """Documents of running text, split by document; equal documents are in one split."""

    ready = True

    def __init__(self, options: TextOptions) -> None:
        self._path, self._module = options.path, options.module

    def _documents(self) -> dict[str, str]:
        if self._path is None:
            return topics(str(self._module))
        return {str(i): text for i, text in enumerate(documents(self._path))}

    @cached_property
    def _table(self) -> SplitTable:
        keys: dict[str, Key] = {}  # of the first document that has a text
        source = str(self._path or self._module)
        rows = [
            (keys.setdefault(folded(text), key_of(name)), source, written({"text": text}))
            for name, text in self._documents().items()
        ]
        return SplitTable(source, rows, Places(_cut))

    def split(self, name: str) -> Sequence[Row]:
        return self._table.split(name)

    def fingerprint(self) -> str:
        """A hash of the file, or of all texts of the module: its source may read other files."""
        if self._path is not None:
            return digest(self._path)
        found = hashlib.sha256()
        for name, text in self._documents().items():
            for part in (name, text):
                found.update(hashlib.sha256(part.encode()).digest())
        return found.hexdigest()


def _cut(key: Key) -> str:
    """80/10/10, by another hash than that of questions: documents share no keys with them."""
    bucket = int.from_bytes(key[:4], "little") % 10
    return SPLITS[max(0, bucket - 7)]


def documents(path: Path) -> list[str]:
    """The text of a file in pieces of about ``SIZE`` characters, cut between paragraphs.

    Raises:
        DataError: there is no such file, it is not UTF-8, or holds no text.
    """
    if exists(path) and not path.is_file():  # a pipe would be waited for
        raise DataError(f"{path}: is not a file; give one of UTF-8 text")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    if not text.strip():
        raise DataError(f"{path}: the file has no text")
    found, begin = list[str](), 0
    for gap in _GAP.finditer(text):
        if gap.end() - begin >= SIZE:
            found.append(text[begin : gap.end()])
            begin = gap.end()
    return [*found, text[begin:]] if text[begin:].strip() else found


def topics(module: str) -> dict[str, str]:
    """The dict ``topics`` of a module. Raises RecipeError where there is none."""
    try:
        found = importlib.import_module(module).topics
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"data: module {module!r} with a dict `topics`: {error}") from error
    return {str(key): str(text) for key, text in found.items()}

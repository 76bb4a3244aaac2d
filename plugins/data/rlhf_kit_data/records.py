"""Records of JSONL, gzipped JSONL and Parquet files, each with its place for a message. Torch-free.

The splits that a source has are its files' or folders' own names.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rlhf_kit.errors import DataError

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")

# (where it stands, the record itself); by split where the source has some.
Records = Iterable[tuple[str, Any]]
Parts = dict[str, Records]

_NAMES = {"valid": "validation", "val": "validation", "dev": "validation"}
_SPLIT = re.compile(r"(?:^|[-_.])(train|validation|valid|val|dev|test)(?=[-_.]|$)")


def part_name(name: str) -> str:
    """The split that a file name or a hub's split name speaks of; "train" if of none."""
    found = _SPLIT.search(name)
    return _NAMES.get(found[1], found[1]) if found else "train"


def local_parts(path: Path, columns: tuple[str, ...]) -> Parts:
    """The records of a file, or of every file below a folder, by split.

    Only ``columns`` are read where the format allows it. The files are read as they are iterated.

    Raises:
        DataError: nothing there, or nothing of a known format.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise DataError(f"{path}: not one of {', '.join(SUFFIXES)}")
        return {"train": _records(path, columns)}
    files = sorted(f for f in path.rglob("*") if f.is_file() and f.name.endswith(SUFFIXES))
    if not files:
        raise DataError(f"{path}: the folder has no file of {', '.join(SUFFIXES)}")
    names = [part_name(file.name) for file in files]
    return {
        name: _chain([f for f, n in zip(files, names, strict=True) if n == name], columns)
        for name in dict.fromkeys(names)
    }


def _chain(files: list[Path], columns: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for file in files:
        yield from _records(file, columns)


def _records(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    return _parquet(path, columns) if path.name.endswith(".parquet") else _lines(path)


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    seen = False
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    seen = True
                    yield f"{path}:{number}", parse(line, f"{path}:{number}")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: a damaged gzip file: {error}") from error
    if not seen:
        raise DataError(f"{path}: the file has no rows")


def parse(line: str | bytes, where: str) -> Any:
    """JSON, or a DataError that says where."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON: {error.msg} at column {error.colno}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text ({error.reason})") from error


def _parquet(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    import pyarrow  # takes a while to import, and most checks do without
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if name in columns]
            number = 0
            for batch in file.iter_batches(columns=names):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", record
    except pyarrow.ArrowException as error:
        cause = str(error).partition("\n")[0]
        raise DataError(f"{path}: not a Parquet file that can be read: {cause}") from error
    if number == 0:
        raise DataError(f"{path}: the file has no rows")

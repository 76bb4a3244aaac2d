"""Records of JSONL, gzipped JSONL and Parquet files, each with its place for a message. Torch-free.

The splits that a source has are named by its files and by the folders that they are in.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rlhf_kit.content import file_hash
from rlhf_kit.errors import DataError
from rlhf_kit_data.layout import part_name
from rlhf_kit_data.strict_json import parse

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")

# (where it stands, the record itself); by split where the source has some.
Records = Iterable[tuple[str, Any]]
Parts = dict[str, Records]


def local_parts(path: Path, columns: tuple[str, ...]) -> Parts:
    """The records of a file, or of every file below a folder, by split.

    A file alone is one part, "train", whatever its name. Below a folder, the path from there on
    tells the split; what is above the folder does not. Only ``columns`` are read where the format
    allows it. The files are read as they are iterated.

    Raises:
        DataError: nothing there, nothing of a known format, or a path that speaks of two splits.
    """
    parts: dict[str, list[Path]] = {}
    for file in data_files(path):
        name = "train" if file == path else part_name(str(file.relative_to(path)), file)
        parts.setdefault(name, []).append(file)
    return {name: _chain(files, columns) for name, files in parts.items()}


def data_files(path: Path) -> list[Path]:
    """The file itself, or every data file below a folder, in the order of their paths.

    Raises:
        DataError: nothing there, or nothing of a known format.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise DataError(f"{path}: not one of {', '.join(SUFFIXES)}")
        return [path]
    files = sorted(f for f in path.rglob("*") if f.is_file() and f.name.endswith(SUFFIXES))
    if not files:
        raise DataError(f"{path}: the folder has no file of {', '.join(SUFFIXES)}")
    return files


def digest(path: Path) -> str:
    """A hash of the content of a file. Raises DataError where there is none."""
    try:
        return file_hash(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """The values of a JSONL file, gzipped where its name ends in ".gz"; empty lines are skipped.

    Raises:
        DataError: see :func:`rlhf_kit_data.strict_json.parse`; or the file is empty or damaged.
    """
    seen = False
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    seen = True
                    where = f"{path}:{number}"
                    yield where, parse(line, where)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: a damaged gzip file: {error}") from error
    if not seen:
        raise DataError(f"{path}: the file has no rows")


def _chain(files: list[Path], columns: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for file in files:
        yield from _parquet(file, columns) if file.suffix == ".parquet" else json_lines(file)


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

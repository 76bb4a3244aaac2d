"""Records of JSONL, gzipped JSONL and Parquet files, each with its place for a message. Torch-free.

The splits that a source has are named by its files and by the folders that they are in.
"""

from __future__ import annotations

import codecs
import gzip
import os
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
        DataError: nothing there, nothing of a known format, a path that speaks of two splits or
            almost of one, or a folder of which all files are held out.
    """
    parts: dict[str, list[Path]] = {}
    for file in data_files(path):
        name = "train" if file == path else part_name(str(file.relative_to(path)), file)
        parts.setdefault(name, []).append(file)
    if len(parts) == 1 and "train" not in parts:
        # The train part may be there and not seen: of another format, or of another name.
        ((name, files),) = parts.items()
        raise DataError(
            f"{path}: all its data files are of split {name!r} ({_some(files, path)}), and so "
            f"there is nothing to train on; add a train part of {', '.join(SUFFIXES)}, or, to cut "
            f"these into splits, name that file or folder itself as `source` or `data_dir`"
        )
    return {name: _chain(files, columns) for name, files in parts.items()}


def data_files(path: Path) -> list[Path]:
    """The file itself, or every data file below a folder, in the order of their paths.

    Links are followed, the case of a suffix does not count, and what is hidden is left out, as on
    the hub: names that begin with "." or "__" below the folder.

    Raises:
        DataError: nothing there, nothing of a known format, or a folder that cannot be read.
    """
    if not exists(path):
        raise DataError(f"{path}: no such file or folder")
    if path.is_file():
        if not has_suffix(path.name):
            raise DataError(f"{path}: not one of {', '.join(SUFFIXES)}")
        return [path]
    files = sorted(_walk(path))
    if not files:
        raise DataError(f"{path}: the folder has no file of {', '.join(SUFFIXES)}")
    return files


def has_suffix(name: str) -> bool:
    """Whether a name ends like a data file."""
    return name.lower().endswith(SUFFIXES)


def _walk(path: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise unreadable(Path(error.filename), error) from error

    for folder, below, names in os.walk(path, onerror=fail, followlinks=True):
        here = Path(folder)
        # A link to a folder that it is in would be followed for ever.
        around = {os.path.realpath(parent) for parent in (here, *here.absolute().parents)}
        below[:] = [
            name for name in below if _shown(name) and os.path.realpath(here / name) not in around
        ]
        files = (here / name for name in names if _shown(name) and has_suffix(name))
        # A link that leads nowhere is kept, so that reading it says so.
        yield from (file for file in files if file.is_file() or not file.exists())


def _shown(name: str) -> bool:
    return not name.startswith((".", "__"))


def _some(files: list[Path], path: Path) -> str:
    names = [str(file.relative_to(path)) for file in files[:3]]
    return ", ".join(names) + (f" and {len(files) - 3} more" if len(files) > 3 else "")


def unreadable(path: Path, error: OSError) -> DataError:
    """What the system says of a file that it does not read."""
    return DataError(f"{path}: cannot be read: {error.strerror or error}")


def exists(path: Path) -> bool:
    """Whether something is there. Raises DataError where the system does not tell."""
    try:
        return path.exists()
    except OSError as error:  # a folder that may not be entered, a name that is too long
        raise unreadable(path, error) from error


def digest(path: Path) -> str:
    """A hash of the content of a file. Raises DataError where there is none."""
    try:
        return file_hash(path)
    except OSError as error:
        raise unreadable(path, error) from error


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """The values of a JSONL file, gzipped where its name ends in ".gz"; empty lines are skipped.

    Raises:
        DataError: see :func:`rlhf_kit_data.strict_json.parse`; or the file is empty, damaged
            or cannot be read.
    """
    seen = False
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                line = line.removeprefix(codecs.BOM_UTF8)  # some editors begin a file with a mark
                if line.strip():
                    seen = True
                    where = f"{path}:{number}"
                    yield where, parse(line, where)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: a damaged gzip file: {error}") from error
    except OSError as error:
        raise unreadable(path, error) from error
    if not seen:
        raise DataError(f"{path}: the file has no rows")


def _chain(files: list[Path], columns: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for file in files:
        parquet = file.suffix.lower() == ".parquet"
        yield from _parquet(file, columns) if parquet else json_lines(file)


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
    except OSError as error:
        raise unreadable(path, error) from error
    if number == 0:
        raise DataError(f"{path}: the file has no rows")

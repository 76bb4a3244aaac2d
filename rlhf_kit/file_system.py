"""What a file system refuses, as one line: the path, why, and what would help. Torch-free."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from rlhf_kit.errors import DataError

_FULL = (
    "no space left on the disk; what was written before is intact. Free some space and run the "
    "same command again"
)
_IN_THE_WAY = "a file is where a folder should be; move it away, or choose another --out"
_FORBIDDEN = "may not be used (permission denied); choose another place, or change who may"
_GONE = "it is gone, or the file system has lost it; see to that, and run the same command again"

# What a disk, a mount or a permission is the cause of. Others may be a fault of the program.
_WORDS = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EROFS: "the file system is read-only; choose another place, or have it mounted to write",
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EEXIST: _IN_THE_WAY,
    errno.EISDIR: "a folder is where a file should be; move it away, or choose another --out",
    errno.ENAMETOOLONG: "the name is too long for this file system; choose a shorter one",
    errno.ENOENT: _GONE,
    errno.ESTALE: _GONE,
    errno.EIO: "the disk cannot be read or written (input/output error); see to that first",
}


def file_error(error: OSError, path: Path | None = None) -> DataError | None:
    """What ``error`` says about ``path``, or about the file that it names itself.

    None where it is not the file system's, such as a connection that was refused.
    """
    words = _WORDS.get(error.errno or 0)
    place = path if path is not None else error.filename
    return None if words is None else DataError(f"{place}: {words}" if place else words)


def check_places(folders: list[Path], files: list[Path]) -> None:
    """Refuse what is in the way of files and folders that will be written later.

    Raises:
        DataError: it is there, and of the other kind.
    """
    for path in folders:
        if path.exists() and not path.is_dir():
            raise DataError(f"{path}: {_IN_THE_WAY}")
    for path in files:
        if path.is_dir():
            raise DataError(f"{path}: {_WORDS[errno.EISDIR]}")


def replace(made: Path, path: Path) -> None:
    """Rename ``made`` to ``path``, and see that it has happened.

    Over a network a rename may be lost, or be done and reported as failed: a server that is asked
    twice does not find the file the second time.

    Raises:
        OSError: ``path`` is not what ``made`` was.
    """
    written = made.stat()
    try:
        made.replace(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE) or not _is(path, written):
            raise
    if not _is(path, written):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))


def _is(path: Path, written: os.stat_result) -> bool:
    """Whether a file of that size is there which is not older; some change times by a second."""
    try:
        found = path.stat()
    except OSError:
        return False
    return found.st_size == written.st_size and found.st_mtime > written.st_mtime - 2

"""How an attempt at a run ends before its time, and what a process does to the files of a run.

Torch-free: loaded by the process that runs.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Events of sys.addaudithook -> the places of paths, and of the folders those are relative to.
_PATHS = {
    "open": ((0, None),),
    "os.mkdir": ((0, 2),),
    "os.rmdir": ((0, 1),),
    "os.remove": ((0, 1),),
    "os.truncate": ((0, None),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((0, 2), (1, 3)),
    "os.symlink": ((1, 2),),
}


@dataclass(frozen=True)
class Death:
    """A signal from within, at an operation on a file, or from outside, after some seconds."""

    signal: int = signal.SIGKILL
    times: int = 1  # the second one comes at the next operation, or as much later again
    operation: str | None = None  # at which it comes, see ``Operations``
    occurrence: int = 1  # of that operation in the attempt, from 1
    kept: float = 1.0  # share of what was being written that is left of it
    seconds: float | None = None  # after which it comes
    command_line: bool = False  # `python -m rlhf_kit` in a process of its own, with all imports

    def __str__(self) -> str:
        name = signal.Signals(self.signal).name + (f" x{self.times}" if self.times > 1 else "")
        how = " by the command line" if self.command_line else ""
        if self.operation is None:
            return f"{name} after {self.seconds:.2f} s{how}"
        torn = f", of what was being written {self.kept:.0%} left" if self.kept < 1 else ""
        return f"{name} before {self.operation!r} no. {self.occurrence}{torn}"


class Operations:
    """An audit hook that writes down what changes files in one folder, and dies as it is told to.

    An operation is known by its kind and its path with every number as "#". A death comes before
    the operation. What an earlier one was writing may then be cut: to nothing, as right after the
    file was opened, or in the middle, as by a kill in a long write.

    Args:
        folder: of the run.
        death: in the midst of which operation, if at any.
    """

    def __init__(self, folder: Path, death: Death | None) -> None:
        self._folder, self._death = os.path.realpath(folder) + os.sep, death
        self.seen: list[str] = []
        self._count, self._left = 0, 0 if death is None else death.times
        self._written: tuple[str, int] | None = None  # last opened to be written, its size then
        self._inside = False

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in _PATHS or self._inside:
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & _WRITES):
            return
        self._inside = True
        try:
            paths = [path for path in _paths(event, args) if path.startswith(self._folder)]
            if paths:
                self._note(event, paths)
        finally:
            self._inside = False

    def _note(self, event: str, paths: list[str]) -> None:
        names = [re.sub(r"\d+", "#", path[len(self._folder) :]) for path in paths]
        label = " ".join([event.removeprefix("os."), *names])
        self.seen.append(label)
        death = self._death
        if death is not None and self._left:
            self._count += label == death.operation
            if self._count >= death.occurrence:
                self._left -= 1
                self._die(death)
        if event == "open":
            size = os.path.getsize(paths[0]) if os.path.exists(paths[0]) else 0
            self._written = (paths[0], size)

    def _die(self, death: Death) -> None:
        if death.kept < 1 and self._written is not None and os.path.isfile(self._written[0]):
            path, before = self._written
            size = os.path.getsize(path)
            before = before if before <= size else 0
            os.truncate(path, before + int((size - before) * death.kept))
        os.kill(os.getpid(), death.signal)


def _paths(event: str, args: tuple[Any, ...]) -> Iterator[str]:
    for place, folder in _PATHS[event]:
        path = args[place]
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        base = "" if folder is None or args[folder] < 0 else f"/proc/self/fd/{args[folder]}"
        path = os.path.join(os.readlink(base) if base else os.getcwd(), os.fsdecode(path))
        # Not of the file itself, which may be there or not.
        yield os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))

"""What a person sees while a run works: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TextIO, cast

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table


class Bar(Protocol):
    def advance(self, steps: int) -> None: ...


class _NoBar:
    def advance(self, steps: int) -> None:
        return


class _RichBar:
    def __init__(self, progress: Progress, task: object) -> None:
        self._progress, self._task = progress, task

    def advance(self, steps: int) -> None:
        self._progress.advance(self._task, steps)  # type: ignore[arg-type]


class _Lasting:
    """A stream that may end before the run does: a terminal that is gone, a log on a full disk.

    What cannot be written is lost, and no step with it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Console:
    """Writes to standard error, so that standard output stays clean for ``--json``."""

    def __init__(self, stream: TextIO | None = None, *, plain: bool = False) -> None:
        self._rich = RichConsole(
            file=cast(TextIO, _Lasting(stream or sys.stderr)),
            highlight=False,
            soft_wrap=True,
            force_terminal=False if plain else None,
        )

    def line(self, text: str) -> None:
        self._rich.print(text, markup=False)

    @contextmanager
    def bar(self, label: str, total: int, unit: str) -> Iterator[Bar]:
        """A progress bar with the remaining time; nothing where there is no terminal."""
        if not self._rich.is_terminal:
            yield _NoBar()
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit + "s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._rich, transient=True) as progress:
            yield _RichBar(progress, progress.add_task(label, total=total))

    def table(self, title: str, rows: Mapping[str, str]) -> None:
        """Two columns; plain aligned text where there is no terminal."""
        if not self._rich.is_terminal:
            width = max(map(len, rows), default=0)
            self.line(title)
            for name, value in rows.items():
                self.line(f"  {name:<{width}}  {value}")
            return
        table = Table("", "", title=title, show_header=False)
        for name, value in rows.items():
            table.add_row(name, value)
        self._rich.print(table)

"""A recipe as read: plain values, and for each key the line it stands on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Place = tuple[str, ...]
"""Where a value stands: ("stages", "ppo", "kl", "coef"). List items count from "0"."""

COMMAND_LINE = 0  # the "line" of a value that came from an override


def dotted(place: Place) -> str:
    """Return "stages.ppo.kl.coef"."""
    return ".".join(place)


@dataclass
class Document:
    """A recipe file's values before anything is checked."""

    path: Path  # absolute
    values: dict[str, Any]
    lines: dict[Place, int] = field(default_factory=dict)

    @property
    def base(self) -> Path:
        """The folder that the recipe's paths are relative to."""
        return self.path.parent

    def line(self, place: Place) -> int:
        """The line of a key, or of the nearest block around it."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def where(self, place: Place) -> str:
        """Return "recipes/quickstart.yaml:31", or "command line"."""
        line = self.line(place)
        return "command line" if line == COMMAND_LINE else f"{shown(self.path)}:{line}"

    def move_to_command_line(self, place: Place) -> None:
        """Record that the value at ``place``, with all below it, came from an override."""
        for other in [other for other in self.lines if other[: len(place)] == place]:
            del self.lines[other]
        self.lines[place] = COMMAND_LINE


def shown(path: Path) -> str:
    """A path as a person would type it: relative when it is below the current folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, RuntimeError):  # elsewhere, or a link that leads to itself
        return str(path)

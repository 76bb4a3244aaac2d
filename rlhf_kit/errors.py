"""Errors meant for the person who made them: what is wrong, where, and what would be right.

Each class carries the exit code of the command line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RlhfKitError(Exception):
    """Base of every error that the command line prints as one line, without a traceback."""

    exit_code = 1


class RecipeError(RlhfKitError):
    """The recipe is wrong: an unknown key, a value out of range, a stage that does not exist."""

    exit_code = 2


class PluginError(RlhfKitError):
    """A plugin is wrong: it failed to import, breaks its interface, or clashes with another."""

    exit_code = 2


class DataError(RlhfKitError):
    """The data is wrong: a missing file, a malformed line, an empty response; also a full disk."""

    exit_code = 3


class NumericsError(RlhfKitError):
    """A numerical guard stopped the run: NaN in a loss, a reward of the wrong shape."""

    exit_code = 4


class Interrupted(RlhfKitError):
    """Somebody asked to stop; everything needed to go on has been saved.

    ``signum`` is the signal that asked; the exit code is 128 more, as shells have it.
    """

    exit_code = 130

    def __init__(self, text: str, signum: int = 2) -> None:
        super().__init__(text)
        self.exit_code = 128 + signum


def interruption(error: BaseException) -> KeyboardInterrupt | None:
    """The Ctrl-C that led to ``error``: a library may answer it with an error of its own."""
    seen: list[BaseException] = []
    while error not in seen:
        if isinstance(error, KeyboardInterrupt):
            return error
        seen.append(error)
        error = error.__cause__ or error.__context__ or error
    return None


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return "; did you mean 'micro_batch'?" for the nearest of ``known``; "" if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""

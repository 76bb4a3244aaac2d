"""How a check fails. Imports no torch."""

from __future__ import annotations

from typing import Any


def require(condition: bool, sentence: str) -> None:
    """Raise AssertionError with a sentence for the plugin's author."""
    if not condition:
        raise AssertionError(sentence)


def named(thing: Any) -> str:
    """What to call an implementation in a sentence."""
    return getattr(thing, "__name__", None) or type(thing).__name__

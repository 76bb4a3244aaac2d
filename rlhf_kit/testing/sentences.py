"""How a check fails. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rlhf_kit.components import check_needs
from rlhf_kit.errors import PluginError


def require(condition: bool, sentence: str) -> None:
    """Raise AssertionError with a sentence for the plugin's author."""
    if not condition:
        raise AssertionError(sentence)


def named(thing: Any) -> str:
    """What to call an implementation in a sentence."""
    return getattr(thing, "__name__", None) or type(thing).__name__


def declared(seam: str, name: str, needs: Iterable[str]) -> None:
    """Needs that a component of ``seam`` could not declare are a mistake of the test."""
    try:
        check_needs(seam, name, needs)
    except PluginError as error:
        raise AssertionError(str(error)) from error

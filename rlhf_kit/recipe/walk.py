"""Go through everything a part holds: nested parts, and references to stages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from rlhf_kit.components import Part, StageRef


def parts_of(part: Part) -> Iterator[Part]:
    """Yield ``part`` and every part in its slots, at any depth."""
    return (found for found in _walk(part) if isinstance(found, Part))


def refs_of(part: Part) -> list[StageRef]:
    """Every stage or folder that ``part`` reads from, through slots and named data."""
    return list(dict.fromkeys(found for found in _walk(part) if isinstance(found, StageRef)))


def _walk(value: Any) -> Iterator[Part | StageRef]:
    if isinstance(value, Part):
        yield value
        yield from _walk(value.options)
    elif isinstance(value, StageRef):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _walk(getattr(value, name))
    elif isinstance(value, dict):
        for item in value.values():
            yield from _walk(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _walk(item)

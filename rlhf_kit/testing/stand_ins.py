"""Stand-ins for what a recipe would choose, where a test is not about it. Imports no torch."""

from __future__ import annotations

from typing import Any

from pydantic.fields import FieldInfo

from rlhf_kit.components import Component, Options, Part, StageRef
from rlhf_kit.option_fields import admits, declared, key_of

NOTHING = Part(Component("", "", ":"), Options(), "", "", "")
"""A part of no component; it cannot be built."""


def none_if_nothing(values: dict[str, Any], name: str, field: FieldInfo) -> None:
    """None in a slot that admits it and of which nothing is written."""
    if "seam" in declared(field) and admits(field, type(None)):
        values.setdefault(name, None)


def stand_in(values: dict[str, Any], name: str, field: FieldInfo) -> None:
    """A stand-in for each part and reference that is not given, or is given by name only."""
    marks = declared(field)
    if "seam" in marks and not admits(field, type(None)):
        several = admits(field, dict)
        if not isinstance(values.get(name), dict if several else Part):
            values[name] = {"": NOTHING} if several else NOTHING
    elif "seam" in marks and not isinstance(values.get(name), Part):
        values[name] = None
    elif "produces" in marks:
        at = name if name in values else key_of(name, field)
        if not isinstance(values.get(at), StageRef):
            values[at] = None if admits(field, type(None)) else StageRef(stage="")

"""A block inside a block: what it does not write keeps the value of its field's default."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def block_model(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a field that holds one block; None where it holds none, or one of several."""
    options = (field.annotation, *typing.get_args(field.annotation))
    models = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
    return models[0] if len(models) == 1 else None


def block_default(field: FieldInfo) -> BaseModel | None:
    """The block that a field holds where nothing is written."""
    if field.is_required():
        return None
    value = field.get_default(call_default_factory=True, validated_data={})
    return value if isinstance(value, BaseModel) else None


def over_defaults(
    model: type[BaseModel], values: Mapping[str, Any], default: BaseModel | None = None
) -> dict[str, Any]:
    """``values`` of a block of ``model``, with every block below it filled up, at any depth.

    A block that is not written at all stays so, and a field of several kinds of block takes what
    is written as it is: the default may be of another kind.

    Args:
        model: the options that the values are of.
        values: as written, keyed by alias or by name.
        default: the block that the values are written over; None at the top.
    """
    result = dict(values)
    for name, field in model.model_fields.items():
        key = field.alias if field.alias is not None and field.alias in values else name
        inner = getattr(default, name) if default is not None else block_default(field)
        if key in values:
            below = block_model(field)
            if below is not None and isinstance(values[key], Mapping):
                start = inner if isinstance(inner, below) else None
                result[key] = over_defaults(below, values[key], start)
        elif default is not None:
            result[field.alias or name] = inner
    return result

"""What the fields of an options class hold: values, slots, references, and blocks inside blocks.

A block inside a block is laid over the default of its field: what it does not write stays as it
was. A default is kept as a recipe would write it, so that it may name components.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def key_of(name: str, field: FieldInfo) -> str:
    """The key of an option in a recipe: ``from`` for a field ``from_`` with that alias."""
    return field.alias or name


def declared(field: FieldInfo) -> Mapping[str, Any]:
    """What ``slot``, ``slots`` or ``stage_ref`` says of a field; empty for every other one."""
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def kinds(annotation: Any) -> tuple[Any, ...]:
    """The types that a union is of; the type itself where it is none."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def admits(field: FieldInfo, kind: type) -> bool:
    """Whether a field's type is ``kind`` or a union that has it."""
    return any(
        option is kind or typing.get_origin(option) is kind for option in kinds(field.annotation)
    )


def is_of_numbers(annotation: Any) -> bool:
    """Whether a type is made of numbers, at any depth, and of nothing that may be true or false."""
    plain = set(_plain_types(annotation))
    return bool(plain & {int, float}) and not plain & {bool, Any, object}


def _plain_types(annotation: Any) -> Iterator[Any]:
    kind = typing.get_origin(annotation)
    inside = typing.get_args(annotation)
    if kind is None or kind is typing.Literal:
        yield kind or annotation
        return
    for item in inside[:1] if kind is typing.Annotated else inside:
        yield from _plain_types(item)


def holds_truth(value: Any) -> bool:
    """Whether a value is true or false, or a list or mapping with one in it."""
    if isinstance(value, Mapping):
        return any(map(holds_truth, value.values()))
    if isinstance(value, list | tuple):
        return any(map(holds_truth, value))
    return isinstance(value, bool)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a type is made of, at any depth."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for arg in typing.get_args(annotation) for model in models_in(arg)]


def block_model(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a field that holds one block; None where it holds none, or one of several."""
    models = [
        k for k in kinds(field.annotation) if isinstance(k, type) and issubclass(k, BaseModel)
    ]
    return models[0] if len(models) == 1 else None


def block_default(field: FieldInfo) -> Mapping[str, Any] | None:
    """The block that a field holds where nothing is written, by key; None where it holds none."""
    if field.is_required():
        return None
    return as_written(field.get_default(call_default_factory=True, validated_data={}))


def as_written(block: Any) -> Mapping[str, Any] | None:
    """A block's values by key, of a mapping or of a model; None for anything else."""
    if isinstance(block, BaseModel):
        fields = type(block).model_fields.items()
        return {key_of(name, field): getattr(block, name) for name, field in fields}
    return block if isinstance(block, Mapping) else None


@dataclass(frozen=True)
class Below:
    """A block inside a block: its model, what is written of it, and what that is written over."""

    model: type[BaseModel]
    written: Mapping[str, Any]
    default: Mapping[str, Any]


def laid_over(
    model: type[BaseModel], written: Mapping[str, Any], default: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Below]]:
    """One block laid over its default; the blocks below it are given apart, by key.

    A field of several kinds of block takes what is written as it is: the default may be of another
    kind. A block that is given as a model, or is to be, has no place below either.

    Args:
        model: the options that the values are of.
        written: values keyed by alias or by name.
        default: values by key, as in a recipe.
    """
    keys = {key_of(name, field) for name, field in model.model_fields.items()}
    # A key of the default that nobody knows stays, and is refused with the others.
    values = {key: value for key, value in default.items() if key not in keys} | dict(written)
    below: dict[str, Below] = {}
    for name, field in model.model_fields.items():
        key = key_of(name, field)
        at = name if name in written and key not in written else key
        if at not in written and key in default:
            values[at] = default[key]
        inner = block_model(field)
        if inner is None:
            if at in written and "use" in declared(field):
                values[at] = _component_over(written[at], default.get(key))
            continue
        start = default[key] if key in default else block_default(field)
        if isinstance(written.get(at), Mapping):
            below[at] = Below(inner, written[at], as_written(start) or {})
        elif at not in written and isinstance(start, Mapping):
            below[at] = Below(inner, {}, start)
    return values, below


def _component_over(written: Any, default: Any) -> Any:
    """A slot's block: without ``use`` it changes options of the component that is the default."""
    if not isinstance(written, Mapping) or "use" in written or default is None:
        return written
    return {**({"use": default} if isinstance(default, str) else default), **written}


def over_defaults(
    model: type[BaseModel],
    written: Mapping[str, Any],
    default: Mapping[str, Any] | None = None,
    fill: Callable[[dict[str, Any], str, FieldInfo], None] | None = None,
) -> dict[str, Any]:
    """``written`` of a block of ``model``, with every block below it filled up, at any depth.

    ``fill(values, name, field)`` may add to the values of each block, field by field.
    """
    values, below = laid_over(model, written, default or {})
    if fill is not None:
        for name, field in model.model_fields.items():
            fill(values, name, field)
    for key, inner in below.items():
        values[key] = over_defaults(inner.model, inner.written, inner.default, fill)
    return values

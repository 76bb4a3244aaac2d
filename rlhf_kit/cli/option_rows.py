"""Describe the options of a component: key, type, default, range, effect, description."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from rlhf_kit.components import Options, effect_of
from rlhf_kit.option_fields import as_written, block_default, block_model, declared, key_of, kinds

_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_LENGTHS = {"min_length": "length >=", "max_length": "length <=", "multiple_of": "multiple of"}


def option_rows(options: type[Options]) -> list[dict[str, str]]:
    """One row per option, in the order they are declared.

    The options of a nested block follow it as ``optimizer.learning_rate``, with the defaults that
    hold there. ``effect`` says what a change does: "identity" makes another result, "execution"
    changes rounding at most, "observation" what is logged.
    """
    return list(_rows(options, "", {}, ()))


def _rows(
    model: type[BaseModel], prefix: str, block: Mapping[str, Any], around: tuple[type, ...]
) -> Iterator[dict[str, str]]:
    """``block`` has the values that hold instead of the model's own where nothing is written."""
    for name, field in model.model_fields.items():
        key = key_of(name, field)
        below = block_model(field)
        opened = below is not None and below not in around  # a model may hold itself
        inner = as_written(block[key]) if key in block else block_default(field)
        if opened:
            default = _block_default(field, inner)
        else:
            default = _shown(block[key]) if key in block else _default(field)
        yield {
            "key": prefix + key,
            "type": "block" if opened else _type(field),
            "default": default,
            "range": _range(field),
            "effect": effect_of(model, name),
            "description": " ".join((field.description or "").split()),
        }
        if below is not None and opened:
            yield from _rows(below, f"{prefix}{key}.", inner or {}, (*around, model, below))


def _block_default(field: FieldInfo, inner: Any) -> str:
    """Of a block itself; its values stand in the rows below it."""
    if inner is not None:
        return ""
    return "required" if field.is_required() else "null"


def _type(field: FieldInfo) -> str:
    extra = declared(field)
    several = any(typing.get_origin(o) is dict for o in kinds(field.annotation))
    if "produces" in extra:
        one = f"stage or folder with {extra['produces']}"
        return f"several, by name: {one}" if several else one
    if "seam" in extra:
        return f"several {extra['seam']} by name" if several else str(extra["seam"])
    return _name(field.annotation)


def _name(annotation: Any) -> str:
    parts = kinds(annotation)
    if len(parts) > 1:
        return " or ".join(_name(part) for part in parts)
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(str(arg) for arg in args)
    if origin is typing.Annotated:
        return _name(args[0])
    if origin is not None:
        inner = ", ".join("..." if arg is Ellipsis else _name(arg) for arg in args)
        return f"{origin.__name__} of {inner}" if inner else origin.__name__
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, Path):
        return "path"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "block of " + ", ".join(key_of(n, f) for n, f in annotation.model_fields.items())
    return {str: "text", bool: "true or false"}.get(
        annotation, getattr(annotation, "__name__", str(annotation))
    )


def _default(field: FieldInfo) -> str:
    extra = declared(field)
    if "seam" in extra and field.default is PydanticUndefined and field.default_factory is None:
        if extra.get("use"):
            return str(extra["use"])
        nullable = any(option is type(None) for option in kinds(field.annotation))
        return "null" if nullable else "required"
    if field.is_required():
        return "required"
    return _shown(field.get_default(call_default_factory=True, validated_data={}))


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping) and "use" in value:  # a slot's default with options of its own
        return ", ".join([str(value["use"]), *(f"{k} {v}" for k, v in value.items() if k != "use")])
    return str(value) if isinstance(value, str | Path) else str(to_jsonable_python(value))


def _range(field: FieldInfo) -> str:
    found = []
    for limit in field.metadata:
        found += [f"{s} {getattr(limit, k):g}" for k, s in _SIGNS.items() if hasattr(limit, k)]
        found += [f"{s} {getattr(limit, k)}" for k, s in _LENGTHS.items() if hasattr(limit, k)]
        if getattr(limit, "pattern", None):
            found.append(f"matches {limit.pattern}")
    return ", ".join(found)

"""Write a resolved recipe out again, with every default filled in."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from rlhf_kit.components import Part, StageRef
from rlhf_kit.recipe.schema import Recipe
from rlhf_kit.recipe.walk import read_fields


def filled(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values that load as the same recipe: defaults filled, paths absolute.

    What nothing reads is left out, since a recipe may not write it.
    """

    def name(part: Part) -> str:
        component = part.component
        if (component.seam, component.name) in recipe.ambiguous:
            return f"{part.package}/{component.name}"
        return component.name

    def block(part: Part) -> dict[str, Any]:
        return {"use": name(part)} | _options(part, slot)

    def slot(part: Part) -> Any:
        entry = part.key.removeprefix("data.")
        return entry if part.key == f"data.{entry}" and entry in recipe.data else block(part)

    return {
        "name": recipe.name,
        "seed": recipe.seed,
        "plugins": [str(path) for path in recipe.plugins],
        "model": block(recipe.model),
        "engine": block(recipe.engine),
        "memory": block(recipe.memory),
        "data": {key: block(part) for key, part in recipe.data.items()},
        "observers": {key: block(part) for key, part in recipe.observers.items()},
        "checkpoint": recipe.checkpoint.model_dump(),
        "stages": {key: block(stage.part) for key, stage in recipe.stages.items()},
    }


def dump_yaml(recipe: Recipe) -> str:
    """The filled recipe as YAML."""
    return yaml.safe_dump(filled(recipe), sort_keys=False, allow_unicode=True, width=100)


def plain(part: Part) -> dict[str, Any]:
    """A part as JSON-able values that are the same whenever it means the same.

    For fingerprints: the package is always named, and named data is spelled out.
    """
    return {"use": f"{part.package}/{part.component.name}"} | _options(part, plain)


def _options(part: Part, slot: Any) -> dict[str, Any]:
    return _model(part.options, slot)


def _model(options: BaseModel, slot: Any, idle: Collection[str] = ()) -> dict[str, Any]:
    values = {
        key: _value(getattr(options, name), slot, inside)
        for name, key, inside in read_fields(options, idle)
    }
    return values | {k: _value(v, slot) for k, v in (options.model_extra or {}).items()}


def _value(value: Any, slot: Any, idle: Collection[str] = ()) -> Any:
    if isinstance(value, Part):
        return slot(value)
    if isinstance(value, StageRef | Path):
        return str(value)
    if isinstance(value, BaseModel):
        return _model(value, slot, idle)
    if isinstance(value, dict):
        return {str(key): _value(item, slot) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_value(item, slot) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(_value(item, slot) for item in value)
    return to_jsonable_python(value)

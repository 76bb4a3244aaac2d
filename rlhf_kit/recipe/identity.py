"""What a block of a recipe means for a result: options, the content they name, and the code."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from rlhf_kit.components import Module, Options, Part, StageRef, effect_of
from rlhf_kit.content import Contents, folder_hash
from rlhf_kit.option_fields import key_of
from rlhf_kit.recipe.walk import read_fields
from rlhf_kit.run_folder import CHECKPOINTS, METRICS, RECORD
from rlhf_kit.seams import FINGERPRINTED

# What a stage folder holds besides its result.
_NO_RESULT = (RECORD, METRICS, CHECKPOINTS)


def identity(part: Part, now: Contents) -> dict[str, Any]:
    """A part as JSON-able values that are the same whenever its result is the same.

    Options that change nothing, or rounding at most, are left out, and so is what another option
    makes idle. A path counts as what lies there, a module as its source, a component as its code;
    a stage of the recipe as its id (see RunContext.records for what that stage depends on).

    Args:
        part: the block.
        now: the contents as they are.
    """
    target, _, attribute = part.component.target.partition(":")
    return {
        "use": f"{part.package}/{part.component.name}",
        "code": [attribute, now.source(target, whole_package=True)],
        **_options(part.options, now, told=part.component.seam in FINGERPRINTED),
    }


def execution(part: Part) -> dict[str, Any]:
    """The options of a part, and of what is in its slots, that change rounding at most, by key."""
    return dict(_execution(part.options, ""))


def _execution(options: BaseModel, before: str) -> Iterator[tuple[str, Any]]:
    for name, field in type(options).model_fields.items():
        key, value = before + key_of(name, field), getattr(options, name)
        if _effect(options, name) == "execution":
            yield key, to_jsonable_python(value)
            continue
        inner = value.items() if isinstance(value, dict) else [("", value)]
        for word, item in inner:
            place = f"{key}.{word}." if word else f"{key}."
            if isinstance(item, Part):
                yield from _execution(item.options, place)
            elif isinstance(item, BaseModel):
                yield from _execution(item, place)


def _options(
    options: BaseModel, now: Contents, *, told: bool = False, idle: Collection[str] = ()
) -> dict[str, Any]:
    values = {
        key: _value(getattr(options, name), now, told, inside)
        for name, key, inside in read_fields(options, idle)
        if _effect(options, name) == "identity"
    }
    return values | {k: _value(v, now) for k, v in (options.model_extra or {}).items()}


def _effect(options: BaseModel, name: str) -> str:
    if isinstance(options, Options):
        return options.effect(name)
    return effect_of(type(options), name)


def _value(value: Any, now: Contents, told: bool = False, idle: Collection[str] = ()) -> Any:
    if isinstance(value, Part):
        return identity(value, now)
    if isinstance(value, StageRef):
        if value.folder is not None:
            return {"artifact": folder_hash(value.folder, without=_NO_RESULT)}
        return {"stage": value.stage}
    if isinstance(value, Path):
        if told and value.is_dir():
            return {"folder": "as its fingerprint says"}
        content = now.path(value) if value.is_absolute() else None
        return {"content": content or str(value)}
    if isinstance(value, Module):
        return {"module": str(value), "source": now.source(value, whole_package=True)}
    if isinstance(value, BaseModel):
        return _options(value, now, told=told, idle=idle)
    if isinstance(value, dict):
        return {str(key): _value(item, now) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_value(item, now) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((_value(item, now) for item in value), key=str)
    return to_jsonable_python(value)

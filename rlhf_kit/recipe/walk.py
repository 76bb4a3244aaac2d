"""Go through everything a part holds: nested parts, and references to stages."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from pydantic import BaseModel

from rlhf_kit.components import Options, Part, StageRef
from rlhf_kit.option_fields import key_of
from rlhf_kit.recipe.document import Place


def parts_of(part: Part) -> Iterator[Part]:
    """Yield ``part`` and every part in its slots, at any depth."""
    return (found for found in _walk(part) if isinstance(found, Part))


def refs_of(part: Part) -> list[StageRef]:
    """Every stage or folder that ``part`` reads from, through slots and named data."""
    return list(dict.fromkeys(found for found in _walk(part) if isinstance(found, StageRef)))


def blocks_of(value: Any, place: Place = ()) -> Iterator[tuple[Place, BaseModel]]:
    """Yield the block ``value`` and every block inside it, at any depth, with their places.

    A part is left out: its options are a block of its own.
    """
    if isinstance(value, BaseModel):
        yield place, value
        for name, field in type(value).model_fields.items():
            yield from blocks_of(getattr(value, name), (*place, key_of(name, field)))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from blocks_of(item, (*place, str(key)))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from blocks_of(item, (*place, str(index)))


def read_fields(
    options: BaseModel, above: Collection[str] = ()
) -> Iterator[tuple[str, str, frozenset[str]]]:
    """Yield name and key of each field that something reads, and what is idle in the block there.

    Args:
        above: keys, dotted, that the blocks around ``options`` make idle in it.
    """
    idle = {*above, *(options.idle() if isinstance(options, Options) else ())}
    for name, field in type(options).model_fields.items():
        key = key_of(name, field)
        if key not in idle:
            inside = f"{key}."
            yield name, key, frozenset(k[len(inside) :] for k in idle if k.startswith(inside))


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

"""Overrides from the command line: ``ppo.kl.coef=0.05``."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from rlhf_kit.errors import RecipeError, did_you_mean
from rlhf_kit.recipe.document import Document, Place, dotted
from rlhf_kit.recipe.load import DEEPEST, parse_yaml
from rlhf_kit.recipe.schema import TOP_LEVEL


def apply_overrides(document: Document, overrides: Sequence[str]) -> Document:
    """Return a copy of ``document`` with each ``key=value`` applied, in order.

    The first segment of a key is a top-level key or the id of a stage. Values are YAML.
    """
    document = Document(document.path, copy.deepcopy(document.values), dict(document.lines))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            raise RecipeError(
                f"command line: {override}: is no override; write key=value, as in seed=1"
            )
        if key.count(".") >= DEEPEST:
            raise RecipeError(f"command line: {key[:60]}...: has more than {DEEPEST} parts")
        try:
            value, _ = parse_yaml(text)
        except RecipeError as error:
            raise RecipeError(f"command line: {key}: {error}") from None
        _assign(document, _place(document, key), value)
    return document


def _place(document: Document, key: str) -> Place:
    place = tuple(key.split("."))
    if place[0] in TOP_LEVEL:
        return place
    stages = document.values.get("stages")
    ids = list(stages) if isinstance(stages, dict) else []
    if place[0] in ids:
        return ("stages", *place)
    near = did_you_mean(place[0], [*ids, *TOP_LEVEL])
    raise RecipeError(
        f"command line: {key}: {place[0]!r} is neither a top-level key nor a stage{near}; "
        f"stages: {', '.join(ids) or 'none'}; top-level keys: {', '.join(TOP_LEVEL)}"
    )


def _assign(document: Document, place: Place, value: Any) -> None:
    block = document.values
    for depth, segment in enumerate(place[:-1], start=1):
        if block.get(segment) is None:  # the override makes the block that it goes into
            document.move_to_command_line(place[:depth])
        block[segment] = _block(block.get(segment), place, depth)
        block = block[segment]
    if place[-1] == "use" and block.get("use") != value:
        # The other options belong to the component that is being replaced.
        block.clear()
        document.move_to_command_line(place[:-1])
    block[place[-1]] = value
    document.move_to_command_line(place)


def _block(current: Any, place: Place, depth: int) -> dict[str, Any]:
    """What an override can go below: a block, a component's bare name, or nothing yet."""
    if current is None:
        return {}
    if isinstance(current, str):
        return {"use": current}
    if isinstance(current, dict):
        return current
    raise RecipeError(
        f"command line: {dotted(place)}: {dotted(place[:depth])} is {current!r}, which has no keys "
        f"below it; assign the whole value"
    )

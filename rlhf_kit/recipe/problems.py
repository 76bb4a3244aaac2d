"""Collect what is wrong with a recipe, one line each, and say it all at once."""

from __future__ import annotations

import datetime
import re
from typing import Any

from pydantic import BaseModel, ValidationError

from rlhf_kit.errors import PluginError, RecipeError, RlhfKitError, did_you_mean
from rlhf_kit.option_fields import key_of, models_in
from rlhf_kit.recipe.document import Document, Place, dotted

_WORDS = {  # for what pydantic says in words of its own
    "path_type": "should be a path",
    "int_parsing_size": "should be an integer of 64 bits",
    "dict_type": "should be a block of names",
}


class Problems:
    """The problems found so far, in the order of the recipe's lines."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self._found: list[tuple[int, str]] = []
        self._places: set[Place] = set()
        self._only_plugins = True

    def __bool__(self) -> bool:
        return bool(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def at(self, place: Place) -> bool:
        """Whether something at or below ``place`` has been found wrong already."""
        return any(other[: len(place)] == place for other in self._places)

    def add(self, place: Place, what: str) -> None:
        """Add "file:line: dotted.key: what; what would be right"."""
        where = self.document.where(place)
        self.add_error(RecipeError(f"{where}: {dotted(place)}: {what}"), place)

    def add_error(self, error: RlhfKitError, place: Place) -> None:
        """Add an error whose message already carries its place."""
        self._places.add(place)
        self._found.append((self.document.line(place), str(error)))
        self._only_plugins &= isinstance(error, PluginError)

    def raise_if_any(self) -> None:
        """Raise everything as one error: PluginError when plugins alone are to blame."""
        if not self._found:
            return
        lines = dict.fromkeys(text for _, text in sorted(self._found, key=lambda item: item[0]))
        raise (PluginError if self._only_plugins else RecipeError)("\n".join(lines))

    def add_invalid(
        self, error: ValidationError, model: type[BaseModel], block: dict[str, Any], at: Place
    ) -> None:
        """Add pydantic's findings about the block that stands ``at``, in this project's words."""
        grouped: dict[Place, list[str]] = {}
        for item in error.errors(include_url=False):
            place = _trimmed(item["loc"], block, item["type"] == "missing")
            text = _say(item, place, model)
            grouped.setdefault(place, [])
            if text not in grouped[place]:
                grouped[place].append(text)
        for place, texts in grouped.items():
            # Several findings at one place are the branches of a union: say the input once.
            what = texts[0] + "".join(" or " + t.rpartition("should be ")[2] for t in texts[1:])
            self.add(at + place, what)


def known_keys(model: type[BaseModel]) -> list[str]:
    """The keys a block may have."""
    return [key_of(name, field) for name, field in model.model_fields.items()]


def unknown_key(key: str, known: list[str]) -> str:
    """What to say about a key that nothing reads."""
    near = did_you_mean(key, known)
    return f"unknown key{near or '; known: ' + (', '.join(known) or 'none')}"


def in_short(value: Any) -> str:
    """A value as it may stand in one line."""
    text = "null" if value is None else repr(value)
    if isinstance(value, datetime.date):
        text = f"{value} (a date; quote it for a text)"
    return text if len(text) <= 60 else text[:57] + "..."


def _trimmed(loc: tuple[int | str, ...], block: dict[str, Any], missing: bool) -> Place:
    """The part of pydantic's location that stands in the recipe.

    The rest are names of union branches, and the mark "[key]" for a mapping's key.
    """
    kept: list[str] = []
    current: Any = block
    for index, part in enumerate(loc):
        inside = (isinstance(current, dict) and part in current) or (
            isinstance(current, list) and isinstance(part, int) and part < len(current)
        )
        if inside:
            current = current[part]
        elif index > 0 and not (missing and index == len(loc) - 1):
            continue
        kept.append(str(part))
    return tuple(kept)


def _say(item: Any, place: Place, model: type[BaseModel]) -> str:
    kind, message, value = item["type"], item["msg"], item["input"]
    if kind == "extra_forbidden":
        owner = _model_at(model, place[:-1])
        return unknown_key(place[-1], known_keys(owner) if owner else [])
    if kind == "missing":
        owner = _model_at(model, place[:-1])
        fields = owner.model_fields.items() if owner else ()
        about = [f.description for n, f in fields if key_of(n, f) == place[-1] and f.description]
        return "missing; " + (about[0].split("\n")[0] if about else "it has no default")
    if kind in ("model_type", "model_attributes_type"):
        return f"is {in_short(value)}; should be a block of options"
    if kind in ("value_error", "assertion_error"):
        message = message.partition(", ")[2] or message
        return message if not place else f"is {in_short(value)}; {message}"
    message = _WORDS.get(kind, message)
    message = re.sub(r"^[A-Z]\w* should ", "should ", message).replace(" after validation", "")
    return message if not place else f"is {in_short(value)}; {message}"


def _model_at(model: type[BaseModel], place: Place) -> type[BaseModel] | None:
    """The nested options model at ``place``."""
    for key in place:
        if key.isdigit():
            continue  # an item of a list of models
        fields = [f for n, f in model.model_fields.items() if key_of(n, f) == key]
        inner = models_in(fields[0].annotation) if fields else []
        if not inner:
            return None
        model = inner[0]
    return model

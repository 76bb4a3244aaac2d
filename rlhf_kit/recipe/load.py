"""Read YAML into plain values, remembering the line of every key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from rlhf_kit.errors import RecipeError
from rlhf_kit.recipe.document import Document, Place, dotted, shown

_MERGE = "tag:yaml.org,2002:merge"


def read_recipe(path: Path) -> Document:
    """Read a recipe file. Raises RecipeError for anything that is not a YAML mapping."""
    path = Path(path)
    name = shown(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{name}: no such file; give the path of a recipe (.yaml)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{name}: cannot be read as UTF-8 text: {error}") from None
    values, lines = parse_yaml(text, name)
    if not isinstance(values, dict):
        what = "is empty" if values is None else "is not a mapping"
        raise RecipeError(f"{name}:1: {what}; a recipe has the keys model, memory and stages")
    return Document(path.resolve(), values, lines)


def parse_yaml(text: str, name: str | None = None) -> tuple[Any, dict[Place, int]]:
    """Parse one YAML document into values and lines.

    ``name`` is the file for messages; without it they carry no file and line.
    """
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            reader = _Reader(loader, name)
            return (None if node is None else reader.value(node, ())), reader.lines
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise RecipeError(_at(name, mark.line if mark else 0) + f"not valid YAML: {what}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position)
        raise RecipeError(_at(name, line) + f"not valid YAML: {error.reason}") from None


def _at(name: str | None, line: int) -> str:
    return f"{name}:{line + 1}: " if name else ""


class _Reader:
    """Turns YAML nodes into values; PyYAML's own constructor forgets lines, accepts duplicates."""

    def __init__(self, loader: yaml.SafeLoader, name: str | None) -> None:
        self.loader = loader
        self.name = name
        self.lines: dict[Place, int] = {}
        self.open: list[yaml.Node] = []

    def value(self, node: yaml.Node, place: Place) -> Any:
        if any(node is parent for parent in self.open):
            raise self.error(node, place, "contains itself; an alias (*) may not name its parent")
        self.open.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self.mapping(node, place)
            if isinstance(node, yaml.SequenceNode):
                return [self.item(n, (*place, str(i))) for i, n in enumerate(node.value)]
            return self.loader.construct_object(node)
        finally:
            self.open.pop()

    def item(self, node: yaml.Node, place: Place) -> Any:
        self.lines[place] = node.start_mark.line + 1
        return self.value(node, place)

    def mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:  # `<<: *defaults`; the block's own keys win
                merged |= self.merged(value_node, place)
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.error(key_node, place, "a key should be a word, not a list or a mapping")
            # Every key is text as written: YAML 1.1 would read `on` as true and `1` as a number.
            key = key_node.value
            if key in own:
                first = self.lines[*place, key]
                raise self.error(
                    key_node, (*place, key), f"written twice (first on line {first}); keep one"
                )
            self.lines[*place, key] = key_node.start_mark.line + 1
            own[key] = self.value(value_node, (*place, key))
        return merged | own

    def merged(self, node: yaml.Node, place: Place) -> dict[str, Any]:
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, place)
        if isinstance(node, yaml.SequenceNode):  # the first of several wins
            result: dict[str, Any] = {}
            for item in reversed(node.value):
                result |= self.merged(item, place)
            return result
        raise self.error(node, place, "<< should name a mapping")

    def error(self, node: yaml.Node, place: Place, what: str) -> RecipeError:
        key = f"{dotted(place)}: " if place and self.name else ""
        return RecipeError(f"{_at(self.name, node.start_mark.line)}{key}{what}")

"""Read YAML into plain values, remembering the line of every key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError

from rlhf_kit.errors import RecipeError
from rlhf_kit.recipe.document import Document, Place, dotted, shown

_MERGE = "tag:yaml.org,2002:merge"
_COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")

# Far more than a recipe has: what is beyond was written to keep its reader busy, or by mistake.
_LARGEST_FILE = 2**16  # bytes
DEEPEST = 40  # levels
_MOST = 10_000  # values, each alias counted with all that it stands for


def read_recipe(path: Path) -> Document:
    """Read a recipe file. Raises RecipeError for anything that is not a YAML mapping."""
    path = Path(path)
    name = shown(path)
    values, lines = parse_yaml(_text(path, name), name)
    if not isinstance(values, dict):
        what = "is empty" if values is None else "is not a mapping"
        raise RecipeError(f"{name}:1: {what}; a recipe has the keys model, memory and stages")
    return Document(path.resolve(), values, lines)


def _text(path: Path, name: str) -> str:
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise RecipeError(f"{name}: is not a file; give the path of a recipe (.yaml)")
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except FileNotFoundError:
        raise RecipeError(f"{name}: no such file; give the path of a recipe (.yaml)") from None
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        raise RecipeError(f"{name}: cannot be read: {_reason(error)}") from None
    if len(content) > _LARGEST_FILE:
        raise RecipeError(f"{name}: is larger than {_LARGEST_FILE // 1024} KiB; is it a recipe?")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start)
        raise RecipeError(
            _at(name, line) + f"not UTF-8 text ({error.reason}); save the recipe as UTF-8"
        ) from None


def _reason(error: OSError | ValueError) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def parse_yaml(text: str, name: str | None = None) -> tuple[Any, dict[Place, int]]:
    """Parse one YAML document into values and lines.

    ``name`` is the file for messages; without it they carry no file and line.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            reader = _Reader(loader, name)
            return (None if node is None else reader.value(node, ())), reader.lines
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise _invalid(name, mark.line if mark else 0, what) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position)
        raise _invalid(name, line, error.reason) from None


def _invalid(name: str | None, line: int, what: str) -> RecipeError:
    hint = "" if name else "; quote the value"  # of an override
    return RecipeError(f"{_at(name, line)}not valid YAML: {what}{hint}")


def _at(name: str | None, line: int) -> str:
    return f"{name}:{line + 1}: " if name else ""


class _Loader(yaml.SafeLoader):
    """Stops at a depth that no recipe has, before Python does."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > DEEPEST:
            mark = self.peek_event().start_mark
            raise ComposerError(None, None, f"nested more than {DEEPEST} levels deep", mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


class _Reader:
    """Turns YAML nodes into values; PyYAML's own constructor forgets lines, accepts duplicates."""

    def __init__(self, loader: yaml.SafeLoader, name: str | None) -> None:
        self.loader = loader
        self.name = name
        self.lines: dict[Place, int] = {}
        self.open: list[yaml.Node] = []
        self.count = 0

    def value(self, node: yaml.Node, place: Place) -> Any:
        if any(node is parent for parent in self.open):
            raise self.error(node, place, "contains itself; an alias (*) may not name its parent")
        self.count += 1
        if self.count > _MOST:
            raise self.error(
                node, place, f"more than {_MOST} values; an alias (*) counts with all it stands for"
            )
        self.open.append(node)
        try:
            if isinstance(node, yaml.ScalarNode):
                return self.scalar(node, place)
            if node.tag not in _COLLECTIONS:
                raise self.error(node, place, f"a recipe has no {_short(node.tag)}; remove the tag")
            if isinstance(node, yaml.MappingNode):
                return self.mapping(node, place)
            return [self.item(n, (*place, str(i))) for i, n in enumerate(node.value)]
        finally:
            self.open.pop()

    def scalar(self, node: yaml.ScalarNode, place: Place) -> Any:
        try:
            value = self.loader.construct_object(node)
        except (ValueError, LookupError, AttributeError, ArithmeticError) as error:
            # PyYAML leaves it to Python to refuse what a tag, or the look of a number, promises.
            raise self.error(
                node,
                place,
                f"{_some(node.value)} is no valid {_short(node.tag)}; a text stands in quotes",
            ) from error
        if isinstance(value, str):
            self.check_text(value, node, place)
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise self.error(node, place, f"{_some(node.value)} does not fit into 64 bits")
        return value

    def check_text(self, text: str, node: yaml.Node, place: Place) -> None:
        """Refuse what neither a path nor UTF-8 can hold."""
        if "\0" in text:
            raise self.error(node, place, "holds the character NUL; remove it")
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
            raise self.error(node, place, "holds half of a surrogate pair; write the character")

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
            self.check_text(key, key_node, place)
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


def _short(tag: str) -> str:
    """ "!!int" for "tag:yaml.org,2002:int"."""
    return tag.replace("tag:yaml.org,2002:", "!!")


def _some(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")

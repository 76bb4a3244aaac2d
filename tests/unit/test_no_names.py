"""Core, stages and engine know no component by its name, target or seam, and none by what it has.

What a component needs it declares (``needs``, a slot, a Protocol); where code asks for a name
instead, a stranger's component of another name is left out. Read from the syntax:

* a comparison (``==``, ``!=``, ``in``, ``match``, ``startswith``) of something with the name of a
  component or of a seam, or of any ``.seam``, ``.target`` or ``component.name`` with words;
* any ``hasattr``, and any ``getattr`` that names its attribute or has a default. (``getattr`` over
  the declared fields of a class names nothing.)
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from rlhf_kit.plugins import load_plugins
from rlhf_kit.registry import Registry

ROOT = Path(__file__).parents[2]
# The testing kit looks at what strangers give it, and is no part of a run.
PLACES = {
    "rlhf_kit": ("rlhf_kit/testing",),
    "plugins/instructgpt": (),
    "plugins/policy_gradient": (),
    "plugins/evaluation": (),
    "plugins/engines": (),
}
# (file, how the expression begins): why it is right there.
JUSTIFIED = {
    ("rlhf_kit/cli/doctor.py", "hasattr(os, 'sched_getaffinity')"): "not on every system",
    ("rlhf_kit/cli/option_rows.py", "getattr(annotation, '__name__'"): "any annotation",
    ("rlhf_kit/cli/option_rows.py", "getattr(limit, 'pattern'"): "pydantic's own metadata",
    ("rlhf_kit/cli/option_rows.py", "hasattr(limit, k)"): "pydantic's own metadata",
    ("rlhf_kit/content.py", "getattr(loaded, '__file__'"): "a module may have no file",
    ("rlhf_kit/engine/release.py", "getattr(ctypes.CDLL(None)"): "not in every C library",
}


@cache
def names() -> frozenset[str]:
    """Of all components that are installed, and of their seams."""
    components = [c for *_, c in Registry(load_plugins({})).all()]
    return frozenset({c.name for c in components} | {c.seam for c in components})


def files() -> list[Path]:
    return [
        path
        for place, without in PLACES.items()
        for path in sorted((ROOT / place).rglob("*.py"))
        if not str(path.relative_to(ROOT)).startswith(without)
    ]


def words(node: ast.AST) -> set[str]:
    """The text that an expression, or a list of them, is made of."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return {node.value}
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return {word for item in node.elts for word in words(item)}
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("frozenset", "set", "tuple"):
        return {word for item in node.args for word in words(item)}
    return set()


def identifies(node: ast.AST) -> bool:
    """Whether an expression is what a component is told by."""
    if not isinstance(node, ast.Attribute):
        return False
    if node.attr in ("seam", "target"):
        return True
    owner = node.value
    last = owner.attr if isinstance(owner, ast.Attribute) else ast.unparse(owner)
    return node.attr == "name" and last in ("component", "part", "offer")


def found_in(source: str) -> Iterator[tuple[int, str]]:
    """(line, expression) of everything that is not to be."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            said = set().union(*map(words, sides))
            if said & names() or (said and any(map(identifies, sides))):
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Match):
            for case in node.cases:
                values = [n.value for n in ast.walk(case.pattern) if isinstance(n, ast.MatchValue)]
                said = set().union(*map(words, values))
                if said & names() or (said and identifies(node.subject)):
                    yield case.pattern.lineno, ast.unparse(case.pattern)
        elif isinstance(node, ast.Call):
            yield from asked(node)


def asked(call: ast.Call) -> Iterator[tuple[int, str]]:
    if isinstance(call.func, ast.Name):
        named = len(call.args) > 1 and isinstance(call.args[1], ast.Constant)
        default = len(call.args) > 2 or bool(call.keywords)
        if call.func.id == "hasattr" or (call.func.id == "getattr" and (named or default)):
            yield call.lineno, ast.unparse(call)
    elif (
        isinstance(call.func, ast.Attribute)
        and call.func.attr in ("startswith", "endswith")
        and identifies(call.func.value)
        and any(map(words, call.args))
    ):
        yield call.lineno, ast.unparse(call)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_component_is_known_by_name(path: Path) -> None:
    where = str(path.relative_to(ROOT))
    excused = [begin for file, begin in JUSTIFIED if file == where]
    found = [
        f"{where}:{line}: {text}"
        for line, text in found_in(path.read_text())
        if not text.startswith(tuple(excused))
    ]
    assert not found


@pytest.mark.parametrize(("file", "begin"), JUSTIFIED)
def test_an_exception_is_still_needed(file: str, begin: str) -> None:
    assert any(text.startswith(begin) for _, text in found_in((ROOT / file).read_text()))


@pytest.mark.parametrize(
    "line",
    [
        'component.seam == "anything"',
        'part.component.target != "anything"',
        'part.component.name in ("anything", "else")',
        '"anything" in component.target',
        'component.target.startswith("rlhf_kit_hf")',
        'chosen == "hydra"',
        'seam in {"data"}',
        'chosen not in frozenset({"gae", "mine"})',
        'match chosen:\n    case "adaptive" | "fixed":\n        pass',
        'match component.seam:\n    case "anything":\n        pass',
        'hasattr(reward, "parts")',
        'getattr(reward, "parts", None)',
        'getattr(reward, "parts")',
        "getattr(options, name, None)",
    ],
)
def test_caught(line: str) -> None:
    assert list(found_in(line))


@pytest.mark.parametrize(
    "line",
    [
        'path.name == "__init__.py"',
        'self.schedule == "cosine"',
        "component.name == other.name",
        "part.component.seam in NAMED",
        '"values" in component.needs',
        "getattr(options, name)",
        '"x" in registry.names("data")',
        'component.target.partition(":")',
    ],
)
def test_not_caught(line: str) -> None:
    assert not list(found_in(line))

"""Whether Python code could be imported, as far as can be told without running it. Torch-free.

What is said here is certain: code that may find or make its names in other ways is let pass, and
whoever imports it says what is wrong then.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

# A file that says one of these may change what can be imported, or which names it has.
_OWN_WAYS = ("sys.path", "sys.modules", "meta_path", "__path__", "addsitedir")
_OWN_NAMES = ("globals(", "exec(", "setattr(", "__dict__", "def __getattr__", "import *")


@dataclass(frozen=True)
class Source:
    """A Python file that was read and parsed, or why it could not be."""

    text: str = ""
    tree: ast.Module | None = None
    wrong: str = ""


def why_no_attribute(module: str, attribute: str) -> str | None:
    """Why ``from module import attribute`` would fail; None where nothing is known against it."""
    loaded = sys.modules.get(module)
    if loaded is not None:
        there = attribute in vars(loaded) or "__getattr__" in vars(loaded)
        return None if there else _no_attribute(module, attribute)
    try:
        spec = _found(module)
    except ModuleNotFoundError as error:
        return f"ModuleNotFoundError: {error}"
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    file = Path(spec.origin)
    package = module if spec.submodule_search_locations is not None else module.rpartition(".")[0]
    return why_no_import(file, package) or why_no_name(file, attribute, module)


def why_no_import(file: Path, package: str = "") -> str | None:
    """Why a Python file could not be imported: not Python, or a module that it needs is missing.

    Only imports are looked at that nothing stands around, and what they import of the same
    ``package``, or of the same folder where there is none.
    """
    seen: set[Path] = set()
    todo = [(file, package)]
    while todo:
        file, package = todo.pop()
        seen.add(file)
        source = _read(file)
        if source.tree is None:
            return source.wrong
        if any(way in source.text for way in _OWN_WAYS):
            continue
        for name in _needed(source.tree, package):
            if not package and (beside := _beside(file, name)) is not None:
                todo += [(beside, "")] if beside not in seen else []
                continue
            try:
                spec = _found(name)
            except ModuleNotFoundError as error:
                return f"ModuleNotFoundError: {error} ({file.name})"
            own = package and name.partition(".")[0] == package.partition(".")[0]
            if own and spec is not None and spec.origin and spec.origin.endswith(".py"):
                inner = spec.submodule_search_locations is not None
                place = Path(spec.origin)
                if place not in seen:
                    todo.append((place, name if inner else name.rpartition(".")[0]))
    return None


def why_no_name(file: Path, name: str, module: str = "") -> str | None:
    """Why a Python file has no ``name`` when it has been imported; None: it has, or may have."""
    source = _read(file)
    if source.tree is None:
        return source.wrong
    if any(way in source.text for way in _OWN_NAMES) or name in _bound(source.tree):
        return None
    return _no_attribute(module, name)


def parameters(file: Path, function: str) -> list[tuple[str, bool]] | None:
    """The parameters of a function of a Python file, and whether each must be given.

    None where they cannot be told: it is no plain ``def`` at the top of the file.
    """
    tree = _read(file).tree
    found = [
        node
        for node in (tree.body if tree is not None else ())
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == function
    ]
    if len(found) != 1 or found[0].decorator_list:
        return None
    arguments = found[0].args
    plain = [*arguments.posonlyargs, *arguments.args]
    required = len(plain) - len(arguments.defaults)
    told = [(argument.arg, place < required) for place, argument in enumerate(plain)]
    if arguments.vararg is not None:
        told.append((arguments.vararg.arg, True))
    told += [
        (argument.arg, default is None)
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    return told


def _no_attribute(module: str, attribute: str) -> str:
    owner = f"module {module!r}" if module else "the file"
    return f"AttributeError: {owner} has no attribute {attribute!r}"


def _read(file: Path) -> Source:
    status = file.stat() if file.is_file() else None
    if status is None:
        return Source(wrong="FileNotFoundError: no such Python file")
    return _parsed(file, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1024)
def _parsed(file: Path, modified: int, size: int) -> Source:
    try:
        content = file.read_bytes()
        return Source(content.decode("utf-8", "replace"), ast.parse(content, file.name))
    except SyntaxError as error:
        line = f" ({file.name}:{error.lineno})" if error.lineno else ""
        return Source(wrong=f"SyntaxError: {error.msg}{line}")
    except (ValueError, RecursionError, MemoryError) as error:  # a NUL, or nested too deeply
        return Source(wrong=f"{type(error).__name__}: {error or 'nested too deeply'}")
    except OSError as error:
        return Source(wrong=f"{type(error).__name__}: {error.strerror or error}")


def _found(module: str) -> ModuleSpec | None:
    """Where a module is, without importing the packages around it; None: that cannot be told.

    Raises:
        ModuleNotFoundError: it is nowhere.
    """
    if module in sys.modules:
        return vars(sys.modules[module]).get("__spec__")
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # such as a module without a __spec__
        return None
    if spec is None:
        raise ModuleNotFoundError(f"No module named {top!r}")
    for depth, _ in enumerate(rest, start=2):
        parent, name = spec, ".".join(module.split(".")[:depth])
        if name in sys.modules:
            spec = vars(sys.modules[name]).get("__spec__")
        else:
            places = parent.submodule_search_locations
            spec = None if places is None else PathFinder.find_spec(name, places)
        if spec is None:
            if _goes_own_ways(parent):
                return None
            raise ModuleNotFoundError(f"No module named {name!r}")
    return spec


def _goes_own_ways(spec: ModuleSpec) -> bool:
    if spec.origin is None or not spec.origin.endswith(".py"):
        return True
    source = _read(Path(spec.origin))
    return any(way in source.text for way in (*_OWN_WAYS, *_OWN_NAMES))


def _beside(file: Path, name: str) -> Path | None:
    """The file of a module in the folder of ``file``."""
    path = file.parent.joinpath(*name.split("."))
    places = (path / "__init__.py", path.with_name(path.name + ".py"))
    return next((place for place in places if place.is_file()), None)


def _needed(tree: ast.Module, package: str) -> Iterator[str]:
    """The modules that are imported whatever happens: before anything else could step in."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".") if package else []
            if node.level > len(parents):
                continue
            above = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            if base:
                yield base


def _bound(tree: ast.Module) -> set[str]:
    """Every name that is given to something anywhere in the file, and perhaps more."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name.partition(".")[0])
        elif isinstance(node, ast.MatchAs | ast.MatchStar | ast.ExceptHandler) and node.name:
            found.add(node.name)
    return found

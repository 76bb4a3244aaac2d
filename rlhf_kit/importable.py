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
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

from rlhf_kit.content import in_folder

# A file with one of these words in its code may change what can be imported.
_OWN_WAYS = {"sys.path", "sys.modules", "meta_path", "path_hooks", "__path__", "addsitedir"}
# And with one of these, which names it has.
_OWN_NAMES = {"globals", "vars", "locals", "f_globals", "f_locals", "exec", "setattr"}
_OWN_NAMES |= {"sys.modules", "__dict__", "__getattr__", "*"}

_FILE = "<file>"  # the package that a file is to itself; nothing that is imported is called so


@dataclass(frozen=True)
class Source:
    """A Python file that was read and parsed, or why it could not be."""

    tree: ast.Module | None = None
    wrong: str = ""
    words: frozenset[str] = frozenset()
    """Every name and attribute that its code speaks of, and those that it binds."""


def why_no_attribute(module: str, attribute: str) -> str | None:
    """Why ``from module import attribute`` would fail; None where nothing is known against it."""
    if module in sys.modules:
        loaded = sys.modules[module]
        if type(loaded) is not ModuleType:  # such as one that imports what is asked of it
            return None
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


def why_no_import(file: Path, package: str = _FILE) -> str | None:
    """Why a Python file could not be imported: not Python, or a module that it needs is missing.

    Only imports are looked at that nothing stands around, and what they import of the same
    ``package``; by default the file is a package to itself, of what lies beside it.
    """
    top = package.partition(".")[0]
    root = spec_from_file_location(_FILE, file, submodule_search_locations=[str(file.parent)])
    seen: set[Path] = set()
    todo, missing = [(file, package)], list[str]()
    while todo:
        file, package = todo.pop()
        seen.add(file)
        source = _read(file)
        if source.tree is None:
            missing.append(source.wrong)
            continue
        if source.words & _OWN_WAYS:
            return None  # of what any of them imports
        for name in _needed(source.tree, package):
            try:
                spec = _found(name, root)
            except ModuleNotFoundError as error:
                dotless = why_without_dot(file, name) if top == _FILE else None
                missing.append(dotless or f"ModuleNotFoundError: {error} ({file.name})")
                continue
            if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
                continue
            place, inner = Path(spec.origin), spec.submodule_search_locations is not None
            own = name.partition(".")[0] == top or (not top and place.parent == file.parent)
            if own and place not in seen:
                todo.append((place, name if inner else name.rpartition(".")[0]))
    return missing[0].replace(f"{_FILE}.", ".") if missing else None


def why_without_dot(file: Path, name: str) -> str | None:
    """Why ``file`` cannot import ``name`` where that lies beside it; None where it does not."""
    if in_folder(file.parent, name.split(".")) is None:
        return None
    return f"imports {name!r}, which lies beside it; write `from .{name} import ...`, with a dot"


def why_no_name(file: Path, name: str, module: str = "") -> str | None:
    """Why a Python file has no ``name`` when it has been imported; None: it has, or may have."""
    source = _read(file)
    if source.tree is None:
        return source.wrong
    if source.words & _OWN_NAMES or name in _bound(source.tree):
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
        tree = ast.parse(file.read_bytes(), file.name)
        return Source(tree, words=frozenset(_words(tree)))
    except SyntaxError as error:
        line = f" ({file.name}:{error.lineno})" if error.lineno else ""
        return Source(wrong=f"SyntaxError: {error.msg}{line}")
    except (ValueError, RecursionError, MemoryError) as error:  # a NUL, or nested too deeply
        return Source(wrong=f"{type(error).__name__}: {error or 'nested too deeply'}")
    except OSError as error:
        return Source(wrong=f"{type(error).__name__}: {error.strerror or error}")


def _found(module: str, root: ModuleSpec | None = None) -> ModuleSpec | None:
    """Where a module is, without importing the packages around it; None: that cannot be told.

    Args:
        root: a package that is not on the path.

    Raises:
        ModuleNotFoundError: it is nowhere.
    """
    if module in sys.modules:
        return _spec_of(sys.modules[module])
    top, *rest = module.split(".")
    try:
        own = root is not None and root.name == top
        spec = root if own else importlib.util.find_spec(top)
    except (ImportError, ValueError):  # such as a module without a __spec__
        return None
    if spec is None:
        raise ModuleNotFoundError(f"No module named {top!r}")
    for depth, _ in enumerate(rest, start=2):
        parent, name = spec, ".".join(module.split(".")[:depth])
        if name in sys.modules:
            spec = _spec_of(sys.modules[name])
            if spec is None:
                return None
        else:
            places = parent.submodule_search_locations
            spec = None if places is None else PathFinder.find_spec(name, places)
        if spec is None:
            if _goes_own_ways(parent):
                return None
            raise ModuleNotFoundError(f"No module named {name!r}")
    return spec


def _spec_of(module: object) -> ModuleSpec | None:
    """None of what only stands in the place of a module."""
    return vars(module).get("__spec__") if isinstance(module, ModuleType) else None


def _goes_own_ways(spec: ModuleSpec) -> bool:
    if spec.origin is None or not spec.origin.endswith(".py"):
        return True
    return bool(_read(Path(spec.origin)).words & (_OWN_WAYS | _OWN_NAMES))


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


def _words(tree: ast.Module) -> Iterator[str]:
    yield from _bound(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
            if isinstance(node.value, ast.Name) and node.value.id == "sys":
                yield f"sys.{node.attr}"
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield from (alias.name, f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Import) and any(
            alias.name == "sys" and alias.asname for alias in node.names
        ):
            yield from ("sys.path", "sys.modules")


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

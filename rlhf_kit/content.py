"""Hashes of what a result depends on: files, folders, and the source of Python modules.

Everything is told by its content, never by its name or place: two files of one name cannot be taken
for each other, and a project that is moved is the same project. Torch-free; nothing is imported.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

_OWN = "rlhf-kit"  # the distribution
_HERE = "rlhf_kit"  # this package's files count like a plugin's own, installed or not


def file_hash(path: Path) -> str:
    """The sha256 of a file; a large file that has not changed is read once per process."""
    status = path.stat()
    return _file_hash(path, status.st_mtime_ns, status.st_size, status.st_ino)


@lru_cache(maxsize=4096)
def _file_hash(path: Path, modified: int, size: int, inode: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_hash(folder: Path, *, without: Iterable[str] = ()) -> str:
    """Of every file below ``folder`` with its place in it.

    Hidden files, ``__pycache__``, and files and folders called as in ``without`` do not count.
    """
    skipped = {"__pycache__", *without}
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if path.is_file() and not any(p in skipped or p.startswith(".") for p in place.parts):
            found.update(f"{place.as_posix()}\0{file_hash(path)}\n".encode())
    return found.hexdigest()


class Contents:
    """Hashes of files, folders and sources as they are now; everything is looked at once.

    The source of a module is that of its file and of everything it imports. Followed are the
    modules of its own package and of rlhf_kit, and whatever lies outside of installed
    distributions. An installed distribution that it imports counts as the list of hashes that was
    installed with it; the standard library and what rlhf_kit itself requires (torch, transformers,
    ...) do not count: their versions are recorded with every attempt.
    """

    def __init__(self) -> None:
        self._direct: dict[
            tuple[str, Path, str, Path | None], tuple[list[tuple[str, Path]], set[str]]
        ] = {}
        self._found: dict[str, Path | None] = {}
        self._hashes: dict[Path, str] = {}
        self._packages: dict[str, set[str]] = {}

    def path(self, path: Path) -> str | None:
        """Of a Python file with what it imports, of another file, of a folder; None for nothing."""
        if path.is_dir():
            return folder_hash(path)
        if not path.is_file():
            return None
        return self.source("", path) if path.suffix == ".py" else file_hash(path)

    def source(self, name: str, file: Path | None = None, *, whole_package: bool = False) -> str:
        """Of the module ``name``, found without being imported, or of a Python file.

        A module that cannot be found has only its name.

        Args:
            whole_package: also every other file of the package that the module is from, since a
                package may read files of its own, or import by a name made up at run time.
        """
        file = file or self._file(name)
        lines = {f"{name}: not found"} if file is None else self._closure(name, file)
        own = name.partition(".")[0]
        if whole_package and own != _HERE:
            if own not in self._packages:
                folders = _package_folders(own)
                self._packages[own] = {f"{own}: {folder_hash(place)}" for place in folders}
            lines = lines | self._packages[own]
        return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()

    def _file(self, name: str, beside: Path | None = None) -> Path | None:
        if beside is not None:
            found = in_folder(beside, name.split("."))
            if found is not None:
                return found
        if name not in self._found:
            self._found[name] = module_file(name)
        return self._found[name]

    def _closure(self, name: str, file: Path) -> set[str]:
        """A line for each file, and for each distribution, that is imported."""
        own, root = name.partition(".")[0], file
        # A file that is in no package may put its own folder on the path when it is imported.
        beside = None if "." in name or file.name == "__init__.py" else file.parent
        lines: set[str] = set()
        todo = {file: name}
        seen: set[Path] = set()
        while todo:
            file, name = todo.popitem()
            seen.add(file)
            if file not in self._hashes:
                self._hashes[file] = file_hash(file)
            # The first one may have a name that is made of its path.
            lines.add(f"{'' if file == root else name}: {self._hashes[file]}")
            files, installed = self._imported(name, file, own, beside)
            lines |= installed
            todo |= {path: module for module, path in files if path not in seen}
        return lines

    def _imported(
        self, name: str, file: Path, own: str, beside: Path | None
    ) -> tuple[list[tuple[str, Path]], set[str]]:
        """What one file imports: modules to follow, and distributions."""
        key = (name, file, own, beside)
        if key not in self._direct:
            files: list[tuple[str, Path]] = []
            installed: set[str] = set()
            for other in _imports(name, file):
                top = other.partition(".")[0]
                # First, since `from .types import x` is said like that too.
                here = beside is not None and in_folder(beside, [top]) is not None
                if top in sys.stdlib_module_names and not here:
                    continue
                brought = None if here or top in (own, _HERE) else _installed(top)
                if brought is not None:
                    installed |= {brought} - {""}
                    continue
                package, star, _ = other.partition(".*")
                found = self._file(package, beside)
                if found is not None and found.suffix == ".py":
                    files.append((package, found))
                    if star and found.name == "__init__.py":  # may name any of its modules
                        inside = sorted(found.parent.glob("*.py"))
                        files += [(f"{package}.{path.stem}", path) for path in inside]
            self._direct[key] = files, installed
        return self._direct[key]


def module_file(name: str) -> Path | None:
    """The source file of a module, found without importing it or the packages it is in."""
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None):
        return Path(str(loaded.__file__))
    top, *rest = name.split(".")
    spec = _top_level(top)
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.has_location and spec.origin else None
    places = spec.submodule_search_locations or ()
    return next(filter(None, (in_folder(Path(place), rest) for place in places)), None)


def in_folder(folder: Path, names: Sequence[str]) -> Path | None:
    """The file of a module below a folder that is on the path, or is a package."""
    path = folder.joinpath(*names)
    for file in (path / "__init__.py", path.with_name(path.name + ".py")):
        if file.is_file():
            return file
    return None


def _top_level(name: str) -> importlib.machinery.ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):  # such as a module without a __spec__
        return None


def _package_folders(top: str) -> list[Path]:
    """None of a plugin file, which lies beside whatever else is in its folder."""
    spec = _top_level(top)
    if spec is not None and spec.origin and Path(spec.origin).name != "__init__.py":
        return []
    places = spec.submodule_search_locations if spec is not None else None
    return [Path(place) for place in places or ()]


def _imports(name: str, file: Path) -> tuple[str, ...]:
    status = file.stat()
    return _parsed(name, file, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4096)
def _parsed(name: str, file: Path, modified: int, size: int) -> tuple[str, ...]:
    """The modules that a file may import, anywhere in it, whether they exist or not."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return ()  # whoever imports it says so
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    found: dict[str, None] = {}
    for node in ast.walk(tree):
        for module in _named(node, package):
            parts = module.split(".")
            # Importing a.b.c runs a and a.b too.
            found |= dict.fromkeys(".".join(parts[: n + 1]) for n in range(len(parts)))
    return tuple(found)


def _named(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parents = package.split(".")
            above = parents[: len(parents) - node.level + 1]
            base = ".".join(filter(None, [*above, base]))
        if base:
            yield base
        yield from (f"{base}.{alias.name}" if base else alias.name for alias in node.names)
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        module = node.args[0].value
        if _word(node.func) in ("import_module", "__import__") and isinstance(module, str):
            yield module.lstrip(".")


def _word(called: ast.expr) -> str:
    """The last word of what a call calls."""
    if isinstance(called, ast.Attribute):
        return called.attr
    return called.id if isinstance(called, ast.Name) else ""


@lru_cache(maxsize=4096)
def _installed(top: str) -> str | None:
    """The distribution that a top-level module was installed from, told by its list of hashes.

    "" for what rlhf_kit requires; None for what does not lie where a distribution was installed,
    such as a file beside the recipe or an editable install: there the files are read.
    """
    spec = _top_level(top)
    if spec is None:
        return None
    places = [*(spec.submodule_search_locations or ())]
    places += [spec.origin] if spec.has_location and spec.origin else []
    for distribution in _distributions(top):
        root = Path(str(distribution.locate_file("")))
        if any(Path(place).is_relative_to(root) for place in places):
            if _normal(distribution.name) == _OWN:
                return None  # its plugins are followed, installed or not
            if _normal(distribution.name) in _required(_OWN):
                return ""
            record = distribution.read_text("RECORD")
            if record is None:  # such as an egg-info beside the sources
                return None
            digest = hashlib.sha256(record.encode()).hexdigest()
            return f"{distribution.name} {distribution.version} {digest}"
    return None


def _distributions(top: str) -> Iterator[importlib.metadata.Distribution]:
    """Those that may have brought a module: first the one of its name, which spares a search."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        yield importlib.metadata.distribution(top)
    for name in _all_distributions().get(top, ()):
        yield importlib.metadata.distribution(name)


@lru_cache(maxsize=1)
def _all_distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


@lru_cache(maxsize=1)
def _required(name: str) -> frozenset[str]:
    """The distributions that one requires, directly or not, whatever the extras."""
    from packaging.requirements import InvalidRequirement, Requirement

    found: set[str] = set()
    todo = [name]
    while todo:
        name = _normal(todo.pop())
        if name in found:
            continue
        found.add(name)
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for line in lines:
            try:
                requirement = Requirement(line)
            except InvalidRequirement:
                continue
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(requirement.name)
    return frozenset(found)


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")

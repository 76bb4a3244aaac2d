"""Find and load plugins, each on its own: a broken one is kept with its exception, never skipped.

A plugin is an entry point of the group ``rlhf_kit`` (built-ins and strangers alike) or one file.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import sys
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from rlhf_kit import hookspecs
from rlhf_kit.components import Component, Options
from rlhf_kit.content import in_folder
from rlhf_kit.errors import PluginError, did_you_mean
from rlhf_kit.importable import why_without_dot

_HOW_TO = "write a `@rlhf_kit.hookimpl def rlhf_components()` that returns its components"


@dataclass(frozen=True)
class Plugin:
    """One loaded plugin and where it came from."""

    name: str  # the entry point's name, or the file as it was given
    package: str  # the distribution, or the file's stem
    version: str = ""
    file: Path | None = None


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin that could not be loaded, and why."""

    name: str
    package: str
    error: BaseException
    file: Path | None = None

    @property
    def cause(self) -> str:
        """The exception in one line, with the line of code that raised it."""
        return one_line(self.error)


@dataclass
class LoadedPlugins:
    """Every plugin that was found: what the good ones offer and why the others failed."""

    manager: pluggy.PluginManager
    plugins: list[Plugin] = field(default_factory=list)
    components: list[tuple[str, str, Component]] = field(default_factory=list)
    """(package, plugin name, component)"""
    broken: list[BrokenPlugin] = field(default_factory=list)

    def call_each(
        self, hook: str, **arguments: Any
    ) -> Iterator[tuple[str, list[Any] | BaseException]]:
        """Call one hook plugin by plugin, yielding (plugin, its results or its exception).

        Not through pluggy's relay: a failure must be laid at one plugin's door.
        """
        for impl in getattr(self.manager.hook, hook).get_hookimpls():
            try:
                yield impl.plugin_name, _items(impl, arguments)
            except (Exception, SystemExit) as error:
                yield impl.plugin_name, error


def load_plugins(
    files: Iterable[Path] = (),
    entry_points: Iterable[importlib.metadata.EntryPoint] | None = None,
) -> LoadedPlugins:
    """Load every installed plugin, then ``files``.

    ``entry_points`` replaces the installed ones, for tests of a plugin that is not installed.
    """
    if entry_points is None:
        entry_points = importlib.metadata.entry_points(group=hookspecs.GROUP)
    loaded = LoadedPlugins(_manager())
    for entry in sorted(entry_points, key=lambda e: (_package(e), e.name)):
        version = entry.dist.version if entry.dist else ""
        _load(loaded, Plugin(entry.name, _package(entry), version), entry.load)
    unique = {Path(file).resolve(): Path(file) for file in files}
    for path, given in unique.items():
        _load(loaded, Plugin(str(given), path.stem, file=path), lambda path=path: import_file(path))
    return loaded


def _package(entry: importlib.metadata.EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value.partition(":")[0].partition(".")[0]


def _manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(hookspecs.GROUP)
    manager.add_hookspecs(hookspecs)
    return manager


def _load(loaded: LoadedPlugins, plugin: Plugin, load: Any) -> None:
    """Add one plugin to ``loaded``, whole or not at all."""
    try:
        found = load()
        components = _components(found)
        if plugin.file is not None:
            components = [_own_target(c, found, plugin.file) for c in components]
        loaded.manager.register(found, name=f"{plugin.package}:{plugin.name}")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may even call sys.exit() while it is imported
        broken = BrokenPlugin(plugin.name, plugin.package, error, plugin.file)
        loaded.broken.append(broken)
        return
    loaded.plugins.append(plugin)
    loaded.components += [(plugin.package, plugin.name, component) for component in components]


def _components(plugin: object) -> list[Component]:
    """Check a plugin's hooks in a manager of its own, and ask it for its components."""
    trial = _manager()
    trial.register(plugin)
    callers = trial.get_hookcallers(plugin) or []
    if not callers:
        raise PluginError(f"implements no hook; {_HOW_TO}")
    hooks = [name for name in vars(hookspecs) if name.startswith("rlhf_")]
    components: list[Component] = []
    for caller in callers:
        impls = caller.get_hookimpls()
        if not caller.has_spec() and not all(impl.optionalhook for impl in impls):
            raise PluginError(
                f"{caller.name} is no hook of rlhf_kit{did_you_mean(caller.name, hooks)}"
            )
        if caller.name == "rlhf_components":
            components += [_checked(item) for impl in impls for item in _items(impl, {})]
    return components


def _items(impl: Any, arguments: dict[str, Any]) -> list[Any]:
    result = impl.function(*(arguments[name] for name in impl.argnames))
    if result is None:
        return []
    # A lone string is one item, not a sequence of letters.
    return [result] if isinstance(result, str | Component) else list(result)


def _checked(item: Any) -> Component:
    if not isinstance(item, Component):
        raise PluginError(f"rlhf_components returned {item!r:.60}; it should return Components")
    if not item.name or "/" in item.name or not item.seam:
        raise PluginError(f"component {item.name!r}: needs a seam and a name without '/'")
    if not isinstance(item.target, str) or not all(item.target.partition(":")):
        raise PluginError(
            f"{item.seam} {item.name!r}: target {item.target!r} should be text, "
            "'package.module:Name', or 'my_file:Name' in the plugin file my_file.py"
        )
    if not (isinstance(item.options, type) and issubclass(item.options, Options)):
        raise PluginError(
            f"{item.seam} {item.name!r}: options should be a subclass of rlhf_kit.Options"
        )
    if "use" in item.options.model_fields:
        raise PluginError(
            f"{item.seam} {item.name!r}: an option cannot be called 'use', which names components"
        )
    return item


def import_file(path: Path, prefix: str = "rlhf_kit_file") -> ModuleType:
    """Import one file anew, under a name that no other module has.

    It is a package to itself, so that it can use a file beside it: ``from .helper import thing``.
    """
    name = f"{prefix}_{path.stem}_{hashlib.sha1(str(path).encode()).hexdigest()[:8]}"
    beside, spec = [str(path.parent)], None
    if path.suffix == ".py":
        spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=beside)
    if spec is None or spec.loader is None:
        raise PluginError("is not a Python file; its name should end in .py")
    module = importlib.util.module_from_spec(spec)
    _forget(name)
    sys.modules[name] = module  # before it runs: dataclasses look their own module up
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        _forget(name)
        dotless = isinstance(error, ModuleNotFoundError) and why_without_dot(path, str(error.name))
        if dotless:
            raise PluginError(dotless) from error
        raise
    return module


def _forget(package: str) -> None:
    for name in [other for other in sys.modules if other.partition(".")[0] == package]:
        del sys.modules[name]


def _own_target(component: Component, module: ModuleType, path: Path) -> Component:
    """Let a file call itself by its stem ("my_loss:MyLoss"): it cannot know its unique name.

    And a file beside it likewise.
    """
    where, _, attribute = component.target.partition(":")
    if where == path.stem:
        return replace(component, target=f"{module.__name__}:{attribute}")
    if in_folder(path.parent, where.split(".")) is not None:
        return replace(component, target=f"{module.__name__}.{where}:{attribute}")
    return component


def one_line(error: BaseException) -> str:
    """Return "NameError: name 'x' is not defined (my_loss.py:12)"."""
    text = " ".join(str(error).split())
    if not isinstance(error, PluginError):  # our own message needs no class name
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    own = {__file__, importlib.metadata.__file__, importlib.__file__, pluggy.__file__}
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in own and not frame.filename.startswith("<")
    ]
    if frames and not isinstance(error, SyntaxError | PluginError):
        text += f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})"
    return text

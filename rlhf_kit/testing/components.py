"""Conformance of declarations: what `check`, `plugins` and `--help` rely on. Imports no torch."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from pydantic import BaseModel, ValidationError, create_model

from rlhf_kit.components import Component, Options
from rlhf_kit.errors import PluginError
from rlhf_kit.option_fields import block_model, declared, models_in, over_defaults
from rlhf_kit.plugins import one_line
from rlhf_kit.seams import STAGE
from rlhf_kit.testing.sentences import require
from rlhf_kit.testing.stand_ins import stand_in

# What the core passes to a target, besides the options.
_PASSED = {"context", "source"}


def check_component(component: Component) -> None:
    """Check a component's declaration.

    Its target can be imported and called as ``target(options)`` or ``target(options, context)``;
    its options have valid defaults and descriptions; it has a summary; and the module of its
    options can be imported without torch, so that a recipe is checked in a fraction of a second.

    Raises:
        AssertionError: with a sentence that says what broke and what would be right.
    """
    name = f"{component.seam} {component.name!r}"
    require(
        bool(component.summary.strip()),
        f"{name}: has no summary; `rlhf-kit plugins list` shows one line about each component",
    )
    require(
        not component.produces or component.seam == STAGE,
        f"{name}: only stages produce artifacts; leave produces empty",
    )
    _check_options(name, component.options)
    _check_target(name, component)
    cause = _needs_torch(component.options.__module__)
    require(
        not cause,
        f"{name}: importing its options ({component.options.__module__}) {cause}; keep options in "
        "a module of their own, without torch",
    )


def check_plugin(module: str | ModuleType) -> list[Component]:
    """Check the plugin in ``module`` (what its entry point names), and all its components.

    Returns:
        The components, for further checks.
    """
    module = module if isinstance(module, str) else module.__name__
    cause = _needs_torch(module)
    require(
        not cause,
        f"plugin {module}: importing it and listing its components {cause}; name targets as "
        "'package.module:Name' strings, which are imported when a run needs them",
    )
    plugin = importlib.import_module(module)
    require(
        hasattr(plugin, "rlhf_components"),
        f"plugin {module}: has no `@rlhf_kit.hookimpl def rlhf_components()`",
    )
    components = list(plugin.rlhf_components())
    for component in components:
        require(isinstance(component, Component), f"plugin {module}: {component!r} is no Component")
        check_component(component)
    return components


def _check_options(name: str, options: type[Options]) -> None:
    require(
        isinstance(options, type) and issubclass(options, Options),
        f"{name}: options should be a subclass of rlhf_kit.Options",
    )
    _check_fields(name, options, ())
    optional = {
        k: (f.annotation, f) for k, f in options.model_fields.items() if not f.is_required()
    }
    # On their own: required options cannot be invented, and "give exactly one of" is fine.
    defaults = create_model("Defaults", __base__=Options, **optional)  # type: ignore[call-overload]
    try:
        defaults(**over_defaults(defaults, {}, fill=stand_in))
    except ValidationError as error:
        # What a nested block requires may be left to the recipe.
        wrong = [item for item in error.errors() if item["type"] != "missing"]
        require(not wrong, f"{name}: a default is not valid: {one_line(error)}")


def _check_fields(name: str, options: type[BaseModel], around: tuple[type, ...]) -> None:
    """The fields of ``options`` and of the blocks inside it."""
    for key, field in options.model_fields.items():
        require(bool(field.description), f"{name}: option {key!r} has no description")
        below = block_model(field)
        if below is None:
            require(
                not any(_has_slots(model) for model in models_in(field.annotation)),
                f"{name}: option {key!r} holds blocks with slots, of several kinds or in a list; "
                "only a field of one block (or null) can have its slots filled",
            )
        elif issubclass(below, Options) and below not in around:  # a model may hold itself
            _check_fields(f"{name}: {key}", below, (*around, options, below))


def _has_slots(model: type[BaseModel]) -> bool:
    return any(declared(field) for field in model.model_fields.values())


def _check_target(name: str, component: Component) -> None:
    try:
        target = component.load()
    except PluginError as error:
        raise AssertionError(f"{name}: {one_line(error)}") from error
    require(callable(target), f"{name}: {component.target} is not callable")
    parameters = inspect.signature(target).parameters
    passed = {key for key in _PASSED if key in parameters}
    try:
        inspect.signature(target).bind("options", **dict.fromkeys(passed))
    except TypeError as error:
        raise AssertionError(
            f"{name}: {component.target} should be callable as target(options) or "
            f"target(options, context), but {error}"
        ) from error


@functools.cache
def _needs_torch(module: str) -> str:
    """Import a module, in a process of its own; return what is wrong, or ""."""
    code = _IMPORTING.format(module=module, path=_file_of(module))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or (found.stderr.strip().splitlines() or [""])[-1]


def _file_of(module: str) -> str:
    """The file of a module that was loaded from a path and cannot be imported by name."""
    try:
        if importlib.util.find_spec(module) is not None:
            return ""
    except (ImportError, ValueError):
        pass
    return str(Path(sys.modules[module].__file__ or "")) if module in sys.modules else ""


_IMPORTING = """
import importlib, importlib.util, sys
if {path!r}:
    spec = importlib.util.spec_from_file_location({module!r}, {path!r})
    module = importlib.util.module_from_spec(spec)
    sys.modules[{module!r}] = module
    spec.loader.exec_module(module)
else:
    module = importlib.import_module({module!r})
if hasattr(module, "rlhf_components"):
    list(module.rlhf_components())
heavy = [name for name in ("torch", "transformers", "datasets") if name in sys.modules]
if heavy:
    print("also imports " + " and ".join(heavy))
"""

"""No option without a reader: a key that a recipe may write does something."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from pydantic import BaseModel

from rlhf_kit import OptimizerOptions, Options, SamplingOptions
from rlhf_kit.components import Component
from rlhf_kit.option_fields import block_model
from rlhf_kit.plugins import load_plugins
from rlhf_kit.registry import Registry


def components() -> list[Component]:
    everything = Registry(load_plugins({})).all()
    found = [c for *_, c in everything if not c.target.startswith("rlhf_kit_example")]
    assert len(found) > 20
    return found


@cache
def read_in(package: str) -> frozenset[str]:
    """Every attribute that some module of ``package`` but its options module reads."""
    folder = Path(str(importlib.import_module(package).__file__)).parent
    names: set[str] = set()
    for file in folder.rglob("*.py"):
        if file.name in ("options.py", "stage_options.py"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.add(node.value)  # getattr(options, "advantage")
    return frozenset(names)


@pytest.mark.parametrize("component", components(), ids=lambda c: f"{c.seam}-{c.name}")
def test_every_option_is_read(component: Component) -> None:
    package = component.target.partition(".")[0]
    unread = set(component.options.model_fields) - read_in(package)
    for base in component.options.__mro__:
        if issubclass(base, Options):  # who offers options to inherit may read them itself
            unread -= set(base.model_fields) & read_in(base.__module__.partition(".")[0])
    unread -= {"model", "memory"}  # of a stage: read by the core, rlhf_kit.recipe.schema
    assert not unread
    for block in blocks_in(component.options):
        # What the core offers to all, such as the options of an optimizer, it may read itself.
        home = block.__module__.partition(".")[0]
        assert not set(block.model_fields) - read_in(package) - read_in(home), block


def blocks_in(options: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The blocks inside a block, at any depth."""
    for field in options.model_fields.values():
        below = block_model(field)
        if below is not None:
            yield below
            yield from blocks_in(below)


def test_blocks_are_found() -> None:
    (ppo,) = [c for c in components() if c.name == "ppo_ptx"]
    assert {OptimizerOptions, SamplingOptions} <= set(blocks_in(ppo.options))

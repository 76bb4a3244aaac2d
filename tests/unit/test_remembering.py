"""What a part keeps from call to call is refused, and only that."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

from rlhf_kit.engine.remembering import remembering
from rlhf_kit.errors import PluginError


class Part:
    def __init__(self, kept: Any) -> None:
        self.kept = kept


class Running:
    """A plain object with figures of its own."""

    def __init__(self) -> None:
        self.mean, self.values = 0.0, [1.0]


def calls(part: Part, change: Callable[[Part], Any]) -> None:
    for _ in range(2):
        with remembering(part, "it"):
            change(part)


def cached(part: Part) -> None:
    part.kept.setdefault(len(part.kept), torch.ones(2))


def replaced(value: Callable[[], Any]) -> Callable[[Part], None]:
    return lambda part: setattr(part, "kept", value())


FINE: dict[str, tuple[Callable[[], Any], Callable[[Part], Any]]] = {
    "a dict that grows": (dict, cached),
    "a device": (lambda: torch.device("cpu"), replaced(lambda: torch.device("cpu"))),
    "a shape": (lambda: torch.ones(2).shape, replaced(lambda: torch.ones(2).shape)),
    "a dtype": (lambda: torch.float32, replaced(lambda: torch.float32)),
    "no number": (lambda: float("nan"), replaced(lambda: float("nan"))),
    "no number in a list": (lambda: [float("nan")], replaced(lambda: [float("nan")])),
    "an equal tensor": (lambda: torch.ones(2), replaced(lambda: torch.ones(2))),
    "an array that is read": (lambda: numpy.ones(2), lambda part: part.kept.sum()),
    "a generator that is not drawn from": (torch.Generator, lambda part: part.kept.get_state()),
    "an object that is read": (Running, lambda part: part.kept.mean),
    "another of these objects": (Running, replaced(Running)),
    "an object that begins empty": (
        SimpleNamespace,
        lambda part: setattr(part.kept, "cache", 1),
    ),
    "an object that fills a cache": (Running, lambda part: setattr(part.kept, "cache", 1)),
    "a part that it is in": (lambda: SimpleNamespace(items=[Part(1)]), lambda part: None),
    "a function": (lambda: calls, lambda part: None),
}

KEPT: dict[str, tuple[Callable[[], Any], Callable[[Part], Any]]] = {
    "a number": (lambda: 1, lambda part: setattr(part, "kept", part.kept + 1)),
    "a list": (list, lambda part: part.kept.append(1)),
    "a set": (set, lambda part: part.kept.add(len(part.kept))),
    "a deque": (deque, lambda part: part.kept.append(1)),
    "a dict's value": (lambda: {"n": 1}, lambda part: part.kept.update(n=part.kept["n"] + 1)),
    "a dict that shrinks": (lambda: {1: 1, 2: 2}, lambda part: part.kept.popitem()),
    "a tensor": (lambda: torch.ones(2), lambda part: part.kept.add_(1)),
    "an array": (lambda: numpy.ones(2), lambda part: part.kept.__iadd__(1)),
    "a generator": (torch.Generator, lambda part: torch.rand(1, generator=part.kept)),
    "one of Python's": (random.Random, lambda part: part.kept.random()),
    "one of numpy's": (numpy.random.default_rng, lambda part: part.kept.random()),
    "an object's number": (Running, lambda part: setattr(part.kept, "mean", part.kept.mean + 1)),
    "an object's list": (Running, lambda part: part.kept.values.append(1)),
    "a namespace's": (lambda: SimpleNamespace(n=1), lambda part: setattr(part.kept, "n", 2)),
}


@pytest.mark.parametrize("name", FINE)
def test_what_is_no_memory_passes(name: str) -> None:
    make, change = FINE[name]
    calls(Part(make()), change)


@pytest.mark.parametrize("name", KEPT)
def test_memory_that_no_checkpoint_holds_is_refused(name: str) -> None:
    make, change = KEPT[name]
    with pytest.raises(PluginError, match="it keeps 'kept' from call to call"):
        calls(Part(make()), change)

"""Wall-clock time of the phases of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import torch


class Clock:
    """Adds up seconds under a name; waits for the accelerator, so that a phase owns its work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def metrics(self) -> dict[str, float]:
        """``seconds/name`` of each phase."""
        return {f"seconds/{name}": spent for name, spent in self.seconds.items()}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            spent = time.perf_counter() - begin
            self.seconds[name] = self.seconds.get(name, 0.0) + spent


class Timed(Protocol):
    """What has a clock of its own."""

    clock: Clock


Owner = TypeVar("Owner", bound=Timed)
Given = ParamSpec("Given")
Found = TypeVar("Found")


def timed(
    phase: str,
) -> Callable[
    [Callable[Concatenate[Owner, Given], Found]], Callable[Concatenate[Owner, Given], Found]
]:
    """Add the time that a method takes to the phase ``phase`` of its object's clock."""

    def decorate(
        method: Callable[Concatenate[Owner, Given], Found],
    ) -> Callable[Concatenate[Owner, Given], Found]:
        @wraps(method)
        def run(owner: Owner, *args: Given.args, **kwargs: Given.kwargs) -> Found:
            with owner.clock.phase(phase):
                return method(owner, *args, **kwargs)

        return run

    return decorate

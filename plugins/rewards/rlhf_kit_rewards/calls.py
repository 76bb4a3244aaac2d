"""Calls that are slow, hang or fail now and then: made in parallel, timed, and made again."""

from __future__ import annotations

import heapq
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from rlhf_kit.errors import RlhfKitError

T = TypeVar("T")
LONGEST_PAUSE = 60.0  # seconds between two calls, however often it has failed


@dataclass(frozen=True)
class Patience:
    """How long to wait for a call, how often to make it again, and how many at once."""

    timeout: float  # seconds
    retries: int
    backoff: float  # seconds before the first retry; twice as many before each that follows
    parallel: int

    def pause(self, failures: int) -> float:
        """Seconds before the next call, after so many that failed."""
        return min(self.backoff * 2.0 ** (failures - 1), LONGEST_PAUSE)


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What has become of one thing that was asked: its value, or why there is none."""

    which: int
    value: T | None
    failure: str = ""


class Calls(Generic[T]):
    """Asks ``ask(i)`` for i = 0 .. count - 1.

    Each call has a thread. Nothing can end a thread from outside: one that is late is left alone,
    what it still returns is not read, and it ends with the process at the latest. A late call has
    no place among the ``parallel`` ones any more.

    Args:
        ask: raises an RlhfKitError where it fails; any other error ends them all.
        patience: with each call.
    """

    def __init__(self, ask: Callable[[int], T], patience: Patience) -> None:
        self._ask, self._patience = ask, patience
        self.counts = {"retries": 0.0, "timeouts": 0.0, "errors": 0.0}
        self._failures: dict[int, int] = {}
        self._due: list[tuple[float, int]] = []  # a heap: when it may be called, and which
        self._running: dict[int, tuple[float, int]] = {}  # call -> when it is late, and which
        self._numbers = itertools.count()
        self._ended: queue.SimpleQueue[tuple[int, T | None, BaseException | None]] = (
            queue.SimpleQueue()
        )

    def outcomes(self, count: int) -> Iterator[Outcome[T]]:
        """One of each, as they come."""
        self._due = [(0.0, which) for which in range(count)]
        while self._due or self._running:
            self._start()
            try:
                number, value, error = self._ended.get(timeout=max(self._next() - _now(), 0.0))
            except queue.Empty:
                late = [n for n, (when, _) in self._running.items() if when <= _now()]
                for number in late:
                    self.counts["timeouts"] += 1
                    why = f"no answer within {self._patience.timeout:g} s"
                    yield from self._failed(self._running.pop(number)[1], why)
                continue
            if number not in self._running:
                continue  # it was late, and is no longer waited for
            which = self._running.pop(number)[1]
            if error is None:
                yield Outcome(which, value)
            elif isinstance(error, RlhfKitError):
                self.counts["errors"] += 1
                yield from self._failed(which, str(error))
            else:
                raise error

    def _start(self) -> None:
        while (
            self._due and self._due[0][0] <= _now() and len(self._running) < self._patience.parallel
        ):
            _, which = heapq.heappop(self._due)
            number = next(self._numbers)
            self._running[number] = (_now() + self._patience.timeout, which)
            threading.Thread(target=self._call, args=(number, which), daemon=True).start()

    def _next(self) -> float:
        """When something is to be done although no call ends."""
        moments = [when for when, _ in self._running.values()]
        if self._due and len(self._running) < self._patience.parallel:
            moments.append(self._due[0][0])
        return min(moments)

    @torch.no_grad()
    def _call(self, number: int, which: int) -> None:
        try:
            self._ended.put((number, self._ask(which), None))
        except BaseException as error:  # whoever waits raises it
            self._ended.put((number, None, error))

    def _failed(self, which: int, why: str) -> Iterator[Outcome[T]]:
        """Ask again after a pause, or give up."""
        failures = self._failures[which] = self._failures.get(which, 0) + 1
        if failures > self._patience.retries:
            yield Outcome(which, None, why)
        else:
            self.counts["retries"] += 1
            heapq.heappush(self._due, (_now() + self._patience.pause(failures), which))


def _now() -> float:
    return time.monotonic()

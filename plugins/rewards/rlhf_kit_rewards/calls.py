"""Calls that are slow, hang or fail now and then: made in parallel, timed, and made again."""

from __future__ import annotations

import heapq
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeAlias, TypeVar

import torch

from rlhf_kit.errors import PluginError, RlhfKitError

X = TypeVar("X")
T = TypeVar("T")
LONGEST_PAUSE = 60.0  # seconds between two calls, however often it has failed
MOST_LATE = 10  # times ``parallel``: so many late calls may still be running


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


@dataclass
class Late:
    """The calls, of all batches, that are no longer waited for and may still be running.

    Args:
        who: asks, for messages.
        stateful: what is asked keeps a state, which a late call may change at any moment.
        most: how many there may be.
    """

    who: str
    stateful: bool
    most: int
    threads: list[threading.Thread] = field(default_factory=list)

    def add(self, thread: threading.Thread, why: str) -> None:
        """Leave one alone.

        Raises:
            PluginError: it keeps a state; or too many are running.
        """
        if self.stateful:
            raise PluginError(
                f"{self.who}: {why}; it keeps a state, which that call may still change: raise "
                "timeout, or let the reward itself give up in time"
            )
        self.threads = [t for t in (*self.threads, thread) if t.is_alive()]
        if len(self.threads) > self.most:
            raise PluginError(
                f"{self.who}: {why}; {len(self.threads)} late calls are still running, more than "
                f"{MOST_LATE} times parallel: raise timeout, or let the reward itself give up in "
                "time"
            )


class Calls(Generic[X, T]):
    """Asks ``ask(item)`` for each of some items.

    Each call has a thread. Nothing can end a thread from outside: one that is late is left alone,
    what it still returns is not read, and it ends with the process at the latest. A late call has
    no place among the ``parallel`` ones any more, and holds no item but its own.

    Args:
        ask: raises an RlhfKitError where it fails; any other error ends them all.
        patience: with each call.
        late: where those go that are late.
    """

    def __init__(self, ask: Callable[[X], T], patience: Patience, late: Late) -> None:
        self._ask, self._patience, self._late = ask, patience, late
        self.counts = {"retries": 0.0, "timeouts": 0.0, "errors": 0.0}
        self._failures: dict[int, int] = {}
        self._due: list[tuple[float, int]] = []  # a heap: when it may be called, and which
        self._running: dict[int, _Call] = {}
        self._numbers = itertools.count()
        self._ended: _Ended[T] = queue.SimpleQueue()

    def outcomes(self, items: Sequence[X]) -> Iterator[Outcome[T]]:
        """One of each, as they come."""
        self._due = [(0.0, which) for which in range(len(items))]
        while self._due or self._running:
            self._start(items)
            try:
                number, value, error = self._ended.get(timeout=max(self._next() - _now(), 0.0))
            except queue.Empty:
                late = [n for n, call in self._running.items() if call.late_at <= _now()]
                for number in late:
                    self.counts["timeouts"] += 1
                    why = f"no answer within {self._patience.timeout:g} s"
                    call = self._running.pop(number)
                    self._late.add(call.thread, why)
                    yield from self._failed(call.which, why)
                continue
            if number not in self._running:
                continue  # it was late, and is no longer waited for
            which = self._running.pop(number).which
            if error is None:
                yield Outcome(which, value)
            elif isinstance(error, RlhfKitError):
                self.counts["errors"] += 1
                yield from self._failed(which, str(error))
            else:
                raise error

    def _start(self, items: Sequence[X]) -> None:
        while (
            self._due and self._due[0][0] <= _now() and len(self._running) < self._patience.parallel
        ):
            _, which = heapq.heappop(self._due)
            number = next(self._numbers)
            # Not a method of this: a call that hangs would keep all items.
            given = (self._ask, items[which], number, self._ended)
            thread = threading.Thread(target=_call, args=given, daemon=True)
            self._running[number] = _Call(_now() + self._patience.timeout, which, thread)
            thread.start()

    def _next(self) -> float:
        """When something is to be done although no call ends."""
        moments = [call.late_at for call in self._running.values()]
        if self._due and len(self._running) < self._patience.parallel:
            moments.append(self._due[0][0])
        return min(moments)

    def _failed(self, which: int, why: str) -> Iterator[Outcome[T]]:
        """Ask again after a pause, or give up."""
        failures = self._failures[which] = self._failures.get(which, 0) + 1
        if failures > self._patience.retries:
            yield Outcome(which, None, why)
        else:
            self.counts["retries"] += 1
            heapq.heappush(self._due, (_now() + self._patience.pause(failures), which))


class _Call(NamedTuple):
    late_at: float
    which: int
    thread: threading.Thread


_Ended: TypeAlias = queue.SimpleQueue[tuple[int, T | None, BaseException | None]]


@torch.no_grad()
def _call(ask: Callable[[X], T], item: X, number: int, ended: _Ended[T]) -> None:
    try:
        ended.put((number, ask(item), None))
    except BaseException as error:  # whoever waits raises it
        ended.put((number, None, error))


def _now() -> float:
    return time.monotonic()

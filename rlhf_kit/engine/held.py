"""The state of a part as it was when a step began, as far as it is still there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from rlhf_kit.engine.checkpoint import state_of
from rlhf_kit.interfaces import Stateful

_PLAIN = {str, int, float, bool, type(None)}
_COPIED = 4096  # bytes; a larger tensor is not copied, and must not have been written to


class Overwritten(Exception):
    """A tensor has been written to since the state was looked at."""


class Held:
    """What ``part.state_dict()`` was, without a copy of what is large.

    Most of what fails in a step fails before anything is learned from it: a reward that calls out,
    memory that does not suffice. What was learned until then can still be saved.
    """

    def __init__(self, part: Stateful, name: str) -> None:
        self._part, self._held = part, _hold(state_of(part, name))

    def state_dict(self) -> dict[str, Any]:
        """As it was.

        Raises:
            Overwritten: it is not there any more.
        """
        state: dict[str, Any] = _release(self._held)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._part.load_state_dict(state)


class _Large:
    """A tensor, and how often it had been written to."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._version = tensor, tensor._version

    def release(self) -> Tensor:
        if self._tensor._version != self._version:
            raise Overwritten
        return self._tensor


def _hold(value: Any) -> Any:
    if isinstance(value, Tensor):
        small = value.nbytes <= _COPIED or value.is_inference()  # which have no count of writes
        return value.detach().clone() if small else _Large(value)
    return _each(value, _hold)


def _release(value: Any) -> Any:
    return value.release() if isinstance(value, _Large) else _each(value, _release)


def _each(value: Any, do: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: do(item) for key, item in value.items()}
    if isinstance(value, list):
        if set(map(type, value)) <= _PLAIN:  # a journal's: long, and here at every step
            return value.copy()
        return [do(item) for item in value]
    if isinstance(value, tuple):
        return tuple(do(item) for item in value)
    return value

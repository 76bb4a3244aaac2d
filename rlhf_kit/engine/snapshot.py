"""A copy of some parts' state, to go back to."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rlhf_kit.interfaces import Stateful


class Snapshot:
    """Holds one copy, on the CPU: it is rarely needed, and as large as what it is of.

    Taken again it is written over in place, so that there are never two.
    """

    def __init__(self) -> None:
        self._held: dict[str, Any] = {}

    def __bool__(self) -> bool:
        """Whether there is something to go back to."""
        return bool(self._held)

    def take(self, parts: Mapping[str, Stateful]) -> None:
        """Keep ``parts`` as they are now."""
        for name, part in parts.items():
            self._held[name] = _copied(part.state_dict(), self._held.get(name))

    def restore(self, parts: Mapping[str, Stateful]) -> None:
        """Put ``parts`` back, the same that were taken, and keep the copy.

        A part may take the tensors that it is given for its own: each gets a copy, one by one.
        """
        for name, part in parts.items():
            part.load_state_dict(_copied(self._held[name]))

    def give_back(self, parts: Mapping[str, Stateful]) -> None:
        """Put ``parts`` back, and keep nothing."""
        held, self._held = self._held, {}
        for name, part in parts.items():
            part.load_state_dict(held.pop(name))

    def state_dict(self) -> dict[str, Any]:
        return self._held

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._held = state


def _copied(state: Any, into: Any = None) -> Any:
    """A copy with its tensors on the CPU; those of ``into``, an older copy, are written over."""
    if isinstance(state, Tensor):
        state = state.detach()
        if isinstance(into, Tensor) and (into.shape, into.dtype) == (state.shape, state.dtype):
            return into.copy_(state)
        return state.to("cpu", copy=True)
    if isinstance(state, dict):
        old = into if isinstance(into, dict) else {}
        return {key: _copied(value, old.get(key)) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        older = into if isinstance(into, list) and len(into) == len(state) else [None] * len(state)
        return [_copied(value, one) for value, one in zip(state, older, strict=True)]
    return copy.deepcopy(state)

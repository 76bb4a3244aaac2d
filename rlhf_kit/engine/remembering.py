"""What keeps figures from call to call must be in a checkpoint."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

import numpy
import torch
from torch import Tensor

from rlhf_kit.components import Options
from rlhf_kit.errors import PluginError
from rlhf_kit.interfaces import Stateful

# Larger arrays are compared by identity: a copy would cost memory.
_COPIED = 2**20

_PLAIN = (str, int, float, bool, type(None), torch.dtype, torch.device)
# What does not change, or belongs to others.
_OTHERS = (Options, type, ModuleType, FunctionType)
_OTHERS_FROM = {"rlhf_kit", "torch", "logging", "threading"}


@contextmanager
def remembering(part: object, who: object) -> Iterator[None]:
    """Refuse a part that changes an attribute of its own inside and is not Stateful.

    It would be left out of every checkpoint, and a run that goes on would begin anew with it. An
    attribute that is new, or a new key of a dict, may be a cache; should it change again, that is
    seen.
    """
    before = None if isinstance(part, Stateful) else _attributes(part, 1)
    yield
    if not before:
        return
    now = _attributes(part, 1) or {}
    changed = [key for key, value in before.items() if key not in now or not _same(value, now[key])]
    if changed:
        raise PluginError(
            f"{who} keeps {', '.join(map(repr, changed))} from call to call, which no checkpoint "
            "would hold; give it state_dict and load_state_dict"
        )


def _attributes(part: object, depth: int) -> dict[str, Any] | None:
    try:
        attributes = vars(part)
    except TypeError:
        return None
    return {key: _figures(value, depth) for key, value in attributes.items()}


def _figures(value: Any, depth: int) -> Any:
    """A value to compare it by later: what may change in place as it is now.

    Args:
        depth: so many levels of objects are looked into; deeper ones are compared as they are.
    """
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor):
        return (value, None if value.is_inference() else value._version)
    if isinstance(value, dict):
        return {key: _figures(item, depth) for key, item in value.items()}
    if isinstance(value, list | tuple | deque):
        return [_figures(item, depth) for item in value]
    if isinstance(value, set):
        return frozenset(value)
    if isinstance(value, numpy.ndarray):
        return value.tobytes() if value.nbytes <= _COPIED else value
    drawn = _drawn(value)
    if drawn is not None:
        return drawn
    strange = isinstance(value, _OTHERS) or type(value).__module__.split(".")[0] in _OTHERS_FROM
    inner = None if strange or not depth else _attributes(value, depth - 1)
    return value if inner is None else inner


def _drawn(value: Any) -> Any:
    """Where a generator of random numbers stands; None of anything else."""
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, numpy.random.Generator):
        return repr(value.bit_generator.state)
    return None


def _same(old: Any, new: Any) -> bool:
    if old is new:
        return True
    if isinstance(old, dict) and isinstance(new, dict):
        return all(key in new and _same(value, new[key]) for key, value in old.items())
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_same, old, new))
    if isinstance(old, tuple) and isinstance(new, tuple) and isinstance(old[0], Tensor):
        return _same_tensor(*old, *new)
    try:
        return bool(old == new or (old != old and new != new))
    except Exception:  # such as of two arrays
        return False


def _same_tensor(old: Tensor, version: int | None, new: Tensor, newest: int | None) -> bool:
    if old is new:
        return version == newest
    if not old.is_inference() and old._version != version:
        return False  # written to, and then replaced
    alike = (old.shape, old.dtype, old.device) == (new.shape, new.dtype, new.device)
    return alike and torch.equal(old, new)

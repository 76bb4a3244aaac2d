"""What keeps figures from call to call must be in a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from rlhf_kit.errors import PluginError
from rlhf_kit.interfaces import Stateful


@contextmanager
def remembering(part: object, who: object) -> Iterator[None]:
    """Refuse a part that changes an attribute of its own inside and is not Stateful.

    It would be left out of every checkpoint, and a run that goes on would begin anew with it. An
    attribute that is new may be a cache; should it change again, that is seen.
    """
    before = {} if isinstance(part, Stateful) else _attributes(part)
    yield
    now = _attributes(part) if before else {}
    changed = [key for key, value in before.items() if now.get(key) != value]
    if changed:
        raise PluginError(
            f"{who} keeps {', '.join(map(repr, changed))} from call to call, which no checkpoint "
            "would hold; give it state_dict and load_state_dict"
        )


def _attributes(part: object) -> dict[str, Any]:
    try:
        return {key: _figures(value) for key, value in vars(part).items()}
    except TypeError:
        return {}  # without a __dict__


def _figures(value: Any) -> Any:
    """A value to compare it by later: plain data by content, everything else by identity."""
    if isinstance(value, Tensor):
        return (id(value), None if value.is_inference() else value._version)
    if isinstance(value, Mapping):
        return [(key, _figures(item)) for key, item in value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        return [_figures(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else id(value)

"""What of a stage's parts a checkpoint must hold."""

from __future__ import annotations

from typing import Any

from rlhf_kit.interfaces import Stateful


def stateful(**parts: Any) -> dict[str, Stateful]:
    """Those of ``parts`` that have state, by name: a stranger's loss or sampler may have some."""
    return {name: part for name, part in parts.items() if isinstance(part, Stateful)}

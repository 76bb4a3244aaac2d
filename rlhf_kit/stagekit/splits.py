"""Splits of a data source, read as early as they can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

from rlhf_kit.interfaces import DataSource
from rlhf_kit.types import Row

Read = TypeVar("Read")


def by_split(
    source: DataSource,
    read: Callable[[Sequence[Row]], Read],
    names: Sequence[str] = ("train", "validation"),
) -> Callable[[str], Read]:
    """Split name -> what ``read`` makes of its rows, once for each.

    For the constructors of stages: ``names`` are read there and then, so that wrong data is known
    before any model is loaded. What an earlier stage has yet to write is read when it is asked for.
    """
    found = cache(lambda name: read(source.split(name)))
    if source.ready:
        for name in names:
            found(name)
    return found

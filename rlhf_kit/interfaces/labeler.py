"""Labelers rank completions: people behind a screen, or a script that stands in for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

from rlhf_kit.types import Samples


class Labels(NamedTuple):
    """What a labeler says of B samples; None of one that it could not judge."""

    ranks: Sequence[int | None]  # within the group: 0 = best, equal = tied
    scores: Sequence[float | None] | None = None  # behind the ranks, if the labeler has any
    counts: Mapping[str, float] = MappingProxyType({})  # for the metrics


class Labeler(Protocol):
    def __call__(self, samples: Samples) -> Labels:
        """Rank the samples of each group."""

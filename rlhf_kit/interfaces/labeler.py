"""Labelers rank completions: people behind a screen, or a script that stands in for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rlhf_kit.types import Samples


class Labeler(Protocol):
    def __call__(self, samples: Samples) -> tuple[Sequence[int], Sequence[float] | None]:
        """Rank the samples of each group: ranks [B] (0 = best, equal = tied) within the group,

        and the scores [B] behind them, if the labeler has any.
        """

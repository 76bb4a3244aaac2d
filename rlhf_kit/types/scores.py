"""Scores of which some may be missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, eq=False)
class PartialScores:
    """What a reward returns that may find no score for some responses, or counts what it met.

    Whoever reads it leaves the responses without a score out, and never reads their places.
    """

    scores: Tensor  # [B] float32, or [B, R]; anything where known is False
    known: Tensor  # [B] bool: which responses have a score
    counts: Mapping[str, float] = field(default_factory=dict)  # for the metrics, summed up there

"""Credit assignment."""

from __future__ import annotations

from typing import Protocol

from rlhf_kit.types import Advantages, Experience


class AdvantageEstimator(Protocol):
    """What it needs of the loop its component declares: the needs of `advantage` in NEEDS."""

    def __call__(self, experience: Experience) -> Advantages:
        """Advantages and returns [B, R] float32, zero where ``experience.places`` is False."""

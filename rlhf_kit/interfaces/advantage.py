"""Credit assignment."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from rlhf_kit.types import Advantages


class AdvantageEstimator(Protocol):
    """Gets values only where its component needs them (``needs={"values"}``), else None."""

    def __call__(
        self, rewards: Tensor, values: Tensor | None, mask: Tensor, group: Tensor
    ) -> Advantages:
        """Rewards, values, mask [B, R] and group [B] -> advantages and returns [B, R] float32."""

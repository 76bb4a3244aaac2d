"""Normalisers of scores, rewards, advantages and values."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from rlhf_kit.interfaces.state import Stateful


class Normalizer(Protocol):
    """One that keeps statistics from rollout to rollout is also Stateful."""

    def __call__(self, x: Tensor, mask: Tensor) -> Tensor:
        """``x`` scaled over the places where ``mask`` is True, zero elsewhere; of any one shape.

        Called once per rollout.
        """


@runtime_checkable
class InvertibleNormalizer(Stateful, Protocol):
    """What a critic needs: it learns normalised returns, and its values are scaled back."""

    def update(self, x: Tensor, mask: Tensor) -> None:
        """Take the values at ``mask`` into the statistics."""

    def normalize(self, x: Tensor) -> Tensor:
        """Scale by the statistics so far; the identity before the first update."""

    def denormalize(self, x: Tensor) -> Tensor:
        """The inverse of ``normalize``."""

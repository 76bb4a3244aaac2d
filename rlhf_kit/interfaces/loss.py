"""Losses return sums; the engine divides once, by the count of the whole optimizer step."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from torch import Tensor

from rlhf_kit.types import LossOutput

Inputs = TypeVar("Inputs", contravariant=True)


class Loss(Protocol[Inputs]):
    def count(self, masks: Any) -> Tensor:
        """[] how many units (tokens, prompts) the sum runs over.

        Called before the forward pass with the micro-batch, so it may read masks (``masks.mask``)
        and what else is known beforehand, such as ``ranks``; never a model's output.
        """

    def __call__(self, inputs: Inputs) -> LossOutput:
        """The sum over those units, and statistics that are sums over them too."""

"""Several rewards with weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rlhf_kit.interfaces import Context
from rlhf_kit_rewards.composite import Composite
from rlhf_kit_rewards.options import WeightedSumOptions


class WeightedSum(Composite):
    def __init__(self, options: WeightedSumOptions, context: Context) -> None:
        super().__init__(options.rewards, context)
        self._weights = {name: options.weights.get(name, 1.0) for name in self.parts}

    def combine(self, components: Mapping[str, Tensor]) -> Tensor:
        scores = self.stacked(components)
        weights = torch.tensor([self._weights[name] for name in components])
        return (weights.view(-1, *[1] * (scores.dim() - 1)) * scores).sum(0)

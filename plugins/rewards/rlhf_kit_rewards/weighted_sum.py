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
        weighted = [self._weights[name] * value.cpu() for name, value in components.items()]
        return torch.stack(weighted).sum(0)

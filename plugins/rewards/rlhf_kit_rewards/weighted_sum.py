"""Several rewards with weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rlhf_kit.engine.scoring import load_models, needs_models
from rlhf_kit.interfaces import Context, Memory, RewardFn
from rlhf_kit.types import Samples
from rlhf_kit_rewards.options import WeightedSumOptions


class WeightedSum:
    """Implements rlhf_kit.interfaces.CompositeReward."""

    def __init__(self, options: WeightedSumOptions, context: Context) -> None:
        self.parts: dict[str, RewardFn] = {
            name: context.build(part) for name, part in options.rewards.items()
        }
        self.needs_models = any(map(needs_models, self.parts.values()))
        self._weights = {name: options.weights.get(name, 1.0) for name in self.parts}

    def load(self, memory: Memory) -> None:
        for reward in self.parts.values():
            load_models(reward, memory)

    def components(self, samples: Samples) -> dict[str, Tensor]:
        return {name: reward(samples).float() for name, reward in self.parts.items()}

    def combine(self, components: Mapping[str, Tensor]) -> Tensor:
        weighted = [self._weights[name] * value.cpu() for name, value in components.items()]
        return torch.stack(weighted).sum(0)

    def __call__(self, samples: Samples) -> Tensor:
        return self.combine(self.components(samples))

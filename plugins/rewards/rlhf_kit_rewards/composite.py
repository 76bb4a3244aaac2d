"""What rewards that are made of several rewards have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlhf_kit.components import Part
from rlhf_kit.engine.scoring import combined, load_models, needs_models
from rlhf_kit.errors import NumericsError
from rlhf_kit.interfaces import Context, Memory, RewardFn, Stateful
from rlhf_kit.types import PartialScores, Samples


class Composite(ABC):
    """Implements rlhf_kit.interfaces.RewardOfParts, NeedsModels and Stateful, but ``combine``."""

    def __init__(self, parts: Mapping[str, Part], context: Context) -> None:
        self.parts: dict[str, RewardFn] = {name: context.build(p) for name, p in parts.items()}
        self.needs_models = any(map(needs_models, self.parts.values()))

    def load(self, memory: Memory) -> None:
        for reward in self.parts.values():
            load_models(reward, memory)

    def components(self, samples: Samples) -> dict[str, Tensor | PartialScores]:
        return {name: reward(samples) for name, reward in self.parts.items()}

    @abstractmethod
    def combine(self, components: Mapping[str, Tensor]) -> Tensor:
        """name -> [B] float32, or [B, R] where tokens are scored, on any device, to one of both."""

    def stacked(self, components: Mapping[str, Tensor]) -> Tensor:
        """[members, B], or [members, B, R], on the CPU.

        Raises:
            NumericsError: some score tokens and others responses.
        """
        of_tokens = [name for name, x in components.items() if x.dim() > 1]
        if 0 < len(of_tokens) < len(components):
            others = [name for name in components if name not in of_tokens]
            raise NumericsError(
                f"{', '.join(of_tokens)} scores tokens, {', '.join(others)} responses; they cannot "
                "be combined: make them all of one kind"
            )
        return torch.stack([x.float().cpu() for x in components.values()])

    def __call__(self, samples: Samples) -> Tensor | PartialScores:
        return combined(self, self.components(samples))

    def _stateful(self) -> dict[str, Stateful]:
        return {name: part for name, part in self.parts.items() if isinstance(part, Stateful)}

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._stateful().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self._stateful().items():
            part.load_state_dict(state[name])

"""A critic: a linear head over the policy's states."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import Parameter

from rlhf_kit.engine.checkpoint import save_tensors
from rlhf_kit.interfaces import Policy
from rlhf_kit.types import Samples
from rlhf_kit_policy_gradient.options import LinearValueOptions


class LinearValue:
    """V = w . state + b in float32. Starts at 0, so that the first advantages are plain returns."""

    def __init__(self, options: LinearValueOptions) -> None:
        self._detach = options.detach
        self._head = nn.Linear(1, 1)

    def attach(self, policy: Policy) -> None:
        """Take the width of the policy's states."""
        device = next((p.device for p in policy.parameters()), None)
        self._head = nn.Linear(policy.hidden_size, 1, device=device)
        nn.init.zeros_(self._head.weight)
        nn.init.zeros_(self._head.bias)

    def __call__(self, states: Tensor, samples: Samples) -> Tensor:
        if self._detach:
            states = states.detach()
        return self._head(states.float()).squeeze(-1)  # [B, R]

    def parameters(self) -> Iterable[Parameter]:
        return self._head.parameters()

    def state_dict(self) -> dict[str, Any]:
        return self._head.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._head.load_state_dict(state)

    def save(self, folder: Path) -> None:
        save_tensors(folder / "value_head.safetensors", self._head.state_dict())

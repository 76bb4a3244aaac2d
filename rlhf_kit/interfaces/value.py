"""The critic."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from rlhf_kit.interfaces.policy import Policy
from rlhf_kit.interfaces.state import Trainable
from rlhf_kit.types import Samples


class ValueHead(Trainable, Protocol):
    def attach(self, policy: Policy) -> None:
        """Called once, before the first use, with the policy whose states it will read."""

    def __call__(self, states: Tensor, samples: Samples) -> Tensor:
        """States [B, R, H] of the policy, and the samples themselves -> values [B, R] float32.

        The value at r estimates the return from the state that chose token r.
        """

"""The critic: what PPO calls, and the model that it may have of its own."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from rlhf_kit.interfaces.policy import Policy
from rlhf_kit.interfaces.state import Trainable
from rlhf_kit.types import Samples, TrunkId


class ValueHead(Trainable, Protocol):
    def attach(self, policy: Policy) -> None:
        """Called once, before the first use, with the policy whose states it will read."""

    def __call__(self, states: Tensor, samples: Samples) -> Tensor:
        """States [B, R, H] of the policy, and the samples themselves -> values [B, R] float32.

        The value at r estimates the return from the state that chose token r.
        """


class Critic(Trainable, Protocol):
    """A scalar head over a model that is not the policy's, or over a part of it of its own."""

    @property
    def origin(self) -> TrunkId | None:
        """Of the kept activations that it reads; None: of none."""

    def values(self, samples: Samples) -> Tensor:
        """[B, R] float32, with gradients: the head at the state that chose each token.

        Raises:
            ValueError: the samples' trunk is of another origin (see ``Samples.read_by``).
        """

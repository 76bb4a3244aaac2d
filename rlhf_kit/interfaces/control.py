"""Controllers of the KL coefficient."""

from __future__ import annotations

from typing import Protocol

from rlhf_kit.interfaces.state import Stateful


class KLController(Stateful, Protocol):
    coefficient: float  # beta of arXiv:2203.02155, equation 2

    def update(self, kl: float, samples: int) -> None:
        """Once per rollout: the mean KL of its sequences, in nats, and how many there were."""

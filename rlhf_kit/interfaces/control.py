"""Controllers of the coefficients of the objective."""

from __future__ import annotations

from typing import Protocol

from rlhf_kit.interfaces.state import Stateful


class KLController(Stateful, Protocol):
    coefficient: float  # beta of arXiv:2203.02155, equation 2

    def update(self, kl: float, samples: int) -> None:
        """Once per rollout: the mean KL of its sequences, in nats, and how many there were."""


class PtxController(Stateful, Protocol):
    coefficient: float  # gamma of arXiv:2203.02155, equation 2
    every: int  # measure the held-out perplexity before every so many rollouts; 0: never

    def update(self, perplexity: float) -> None:
        """Once per measurement, the first before any update: held-out perplexity per token."""

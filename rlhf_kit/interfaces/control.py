"""Controllers of the coefficients of the objective."""

from __future__ import annotations

from typing import Protocol


class KLController(Protocol):
    """One that remembers is also Stateful."""

    def __call__(self, coefficient: float, kl: float, samples: int) -> float:
        """beta of arXiv:2203.02155, equation 2, for the next rollout, from that of this one.

        Args:
            coefficient: beta of the rollout that has been learned from.
            kl: the mean KL of its responses, in nats.
            samples: how many there were.
        """


class PtxController(Protocol):
    """One that remembers is also Stateful."""

    every: int  # measure the held-out perplexity before every so many rollouts; 0: never

    def __call__(self, coefficient: float, perplexity: float) -> float:
        """gamma of arXiv:2203.02155, equation 2, from what it was.

        Called once per measurement, the first before any update, with the held-out perplexity per
        token.
        """

"""Several rewards that should agree, and what to believe where they do not."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from rlhf_kit.interfaces import Context
from rlhf_kit_rewards.composite import Composite
from rlhf_kit_rewards.options import EnsembleOptions


class Ensemble(Composite):
    """Reward model ensembles against overoptimisation, arXiv:2310.02743 (Coste et al.), section 4.

    Over the members' scores r_1 .. r_n of one response: ``mean``; ``min``, their worst-case
    optimisation (WCO); or ``mean_minus_std``, mean(r) - k std(r). Their uncertainty-weighted
    optimisation (UWO) subtracts k times the variance; the standard deviation is in the unit of the
    scores, so that k means the same for scores of any scale. The standard deviation divides by n.
    """

    def __init__(self, options: EnsembleOptions, context: Context) -> None:
        super().__init__(options.rewards, context)
        self._how, self._std_coef = options.combine, options.std_coef

    def combine(self, components: Mapping[str, Tensor]) -> Tensor:
        scores = self.stacked(components)  # [members, B]
        if self._how == "min":
            return scores.amin(0)
        mean = scores.mean(0)
        if self._how == "mean":
            return mean
        return mean - self._std_coef * scores.std(0, correction=0)

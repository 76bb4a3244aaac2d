"""Losses that no stage here has yet, written as a guest would write them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_kit.types import LabelledInputs, LossOutput, Masked, PairInputs


class DPO:
    """``-log sigmoid(beta (h_w - h_l))``, ``h = log pi - log pi_ref``: arXiv:2305.18290, eq. 7."""

    def __init__(self, beta: float = 0.1) -> None:
        self.beta = beta

    def count(self, units: Masked) -> Tensor:
        return units.mask.sum()

    def __call__(self, inputs: PairInputs) -> LossOutput:
        margin = (inputs.chosen - inputs.reference_chosen) - (
            inputs.rejected - inputs.reference_rejected
        )
        margin = torch.where(inputs.mask, margin, 0.0)
        per_pair = torch.where(inputs.mask, -logsigmoid(self.beta * margin), 0.0)
        return LossOutput(per_pair.sum(), {"accuracy": (margin > 0).float().sum()})


class KTO:
    """``lambda_y - v``, arXiv:2402.01306, eq. 8, its baseline over the whole optimizer step.

    ``v = lambda_D sigmoid(beta (r - z))`` of a desirable answer and
    ``v = lambda_U sigmoid(beta (z - r))`` of another one, with ``r = log pi - log pi_ref`` and
    ``z = max(0, mean of r over the mismatched answers)``, through which no gradient flows.
    """

    def __init__(self, beta: float = 0.1, desirable: float = 1.0, undesirable: float = 1.0) -> None:
        self.beta, self.desirable, self.undesirable = beta, desirable, undesirable

    def count(self, units: Masked) -> Tensor:
        return units.mask.sum()

    def observe(self, inputs: LabelledInputs) -> Mapping[str, Tensor]:
        assert inputs.mismatched is not None and inputs.reference_mismatched is not None
        reward = inputs.mismatched - inputs.reference_mismatched
        return {
            "mismatched": torch.where(inputs.mask, reward, 0.0).sum(),
            "answers": inputs.mask.sum(),
        }

    def __call__(self, inputs: LabelledInputs, observed: Mapping[str, Tensor]) -> LossOutput:
        baseline = observed["mismatched"] / observed["answers"].clamp(min=1)
        above = inputs.logprobs - inputs.reference_logprobs - baseline.clamp(min=0)
        above = torch.where(inputs.mask, above, 0.0)
        sign = torch.where(inputs.desirable, 1.0, -1.0)
        weight = torch.where(inputs.desirable, self.desirable, self.undesirable)
        value = torch.sigmoid(self.beta * sign * above)
        per_answer = torch.where(inputs.mask, weight * (1.0 - value), 0.0)
        return LossOutput(per_answer.sum(), {"value": torch.where(inputs.mask, value, 0.0).sum()})

"""GRPO: group relative policy optimization, arXiv:2402.03300."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kit.types import Advantages, Experience, LossOutput, PolicyLossInputs, SampledUnits
from rlhf_kit_guests.options import GroupOptions, GRPOOptions


class GroupAdvantage:
    """``A_i = (r_i - mean r) / std r`` within the answers to one prompt, section 4.1.2.

    Reads the scores, in which there is no KL: that is the loss's.
    """

    def __init__(self, options: GroupOptions) -> None:
        self._eps = options.eps

    def __call__(self, experience: Experience) -> Advantages:
        scores, group, places = experience.scores, experience.group, experience.places
        same = (group[:, None] == group[None, :]).to(scores.dtype)  # [B, B]
        count = same.sum(1)
        gap = scores - same @ scores / count  # [B]
        std = (same @ gap.square() / count).sqrt()
        advantages = torch.where(places, (gap / (std + self._eps))[:, None], 0.0)
        return Advantages(advantages, torch.where(places, scores[:, None], 0.0))


class GRPO:
    """Equation 3: per token ``min(rho A, clip(rho) A) - beta k3``, the mean over each answer.

    k3 is ``pi_ref / pi - log(pi_ref / pi) - 1``, equation 4.
    """

    def __init__(self, options: GRPOOptions) -> None:
        self._range, self._beta = options.clip_range, options.beta

    def count(self, units: SampledUnits) -> Tensor:
        return units.mask.any(1).sum()

    def __call__(self, inputs: PolicyLossInputs) -> LossOutput:
        mask = inputs.mask
        length = mask.sum(1, keepdim=True).clamp(min=1)  # [B, 1]
        moved = torch.where(mask, inputs.logprobs - inputs.old_logprobs, 0.0)
        away = torch.where(mask, inputs.reference_logprobs - inputs.logprobs, 0.0)
        advantages = torch.where(mask, inputs.advantages, 0.0)
        ratio, k3 = moved.exp(), away.exp() - away - 1.0
        clipped = ratio.clamp(1.0 - self._range, 1.0 + self._range)
        gain = torch.minimum(ratio * advantages, clipped * advantages) - self._beta * k3
        stats = {"kl": (k3 / length).sum(), "ratio": torch.where(mask, ratio / length, 0.0).sum()}
        return LossOutput(-(gain / length).sum(), stats)

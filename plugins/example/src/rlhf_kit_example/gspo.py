"""Group sequence policy optimization: PPO's clipped ratio, taken over whole responses."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kit.ops.masking import masked_sum
from rlhf_kit.types import LossOutput, PolicyLossInputs, SampledUnits, check_shape
from rlhf_kit_example.options import GSPOOptions


class GSPO:
    """``max(-A s, -A clip(s, 1 - low, 1 + high))`` per response, arXiv:2507.18071, equation 5.

    ``s = (pi(y|x) / pi_old(y|x))^(1/|y|)``, equation 7: the geometric mean of the token ratios.
    A response's advantage is the mean of its tokens' (they are equal under `rloo`).
    """

    def __init__(self, options: GSPOOptions) -> None:
        self._low, self._high = 1.0 - options.clip_low, 1.0 + options.clip_high

    def count(self, units: SampledUnits) -> Tensor:
        """[] the number of responses: the paper's mean is over responses, not tokens."""
        return units.mask.any(1).sum()

    def __call__(self, inputs: PolicyLossInputs) -> LossOutput:
        mask = inputs.mask
        sizes = check_shape(mask, "B R", "mask")
        check_shape(inputs.logprobs, "B R", "logprobs", **sizes)
        valid, length = mask.any(1), mask.sum(1).clamp(min=1)  # [B]
        log_ratio = torch.where(mask, inputs.logprobs - inputs.old_logprobs, 0.0)  # [B, R]
        ratio = (log_ratio.sum(1) / length).exp()  # [B]
        advantage = torch.where(mask, inputs.advantages, 0.0).sum(1) / length  # [B]
        plain = -advantage * ratio
        clipped = -advantage * ratio.clamp(self._low, self._high)
        stats = {
            "clip_fraction": masked_sum((clipped > plain).float(), valid),
            "ratio": masked_sum(ratio, valid),
        }
        return LossOutput(masked_sum(torch.maximum(plain, clipped), valid), stats)

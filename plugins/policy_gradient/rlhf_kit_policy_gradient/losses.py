"""The losses of PPO. Each returns a sum; the engine divides by the count, once."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kit.ops.masking import masked_sum
from rlhf_kit.types import (
    LossOutput,
    Masked,
    PolicyLossInputs,
    SampledUnits,
    ValueLossInputs,
    check_shape,
)
from rlhf_kit_policy_gradient.options import ClipOptions, KLOptions


class PPOClip:
    """``max(-A rho, -A clip(rho, 1 - e, 1 + e))`` per token, arXiv:1707.06347, equation 7."""

    def __init__(self, options: ClipOptions) -> None:
        self._range = options.clip_range

    def count(self, units: SampledUnits) -> Tensor:
        return units.mask.sum()

    def __call__(self, inputs: PolicyLossInputs) -> LossOutput:
        sizes = check_shape(inputs.mask, "B R", "mask")
        check_shape(inputs.logprobs, "B R", "logprobs", **sizes)
        mask = inputs.mask
        # Masked before exp: garbage in the padding must not overflow into a NaN gradient.
        log_ratio = torch.where(mask, inputs.logprobs - inputs.old_logprobs, 0.0)
        ratio = log_ratio.exp()
        advantages = torch.where(mask, inputs.advantages, 0.0)
        plain = -advantages * ratio
        clipped = -advantages * ratio.clamp(1 - self._range, 1 + self._range)
        stats = {
            "clip_fraction": masked_sum((clipped > plain).float(), mask),
            # k3 of http://joschu.net/blog/kl-approx.html: how far this step has moved.
            "approx_kl": masked_sum(ratio - 1 - log_ratio, mask),
            "ratio": masked_sum(ratio, mask),
        }
        return LossOutput(masked_sum(torch.maximum(plain, clipped), mask), stats)


class ClippedValue:
    """``0.5 max((V - R)^2, (V_clip - R)^2)``, V_clip within a range of the old value.

    As in openai/lm-human-preferences, ``train_policy.py``; the paper does not say.
    """

    def __init__(self, options: ClipOptions) -> None:
        self._range = options.clip_range

    def count(self, units: Masked) -> Tensor:
        return units.mask.sum()

    def __call__(self, inputs: ValueLossInputs) -> LossOutput:
        sizes = check_shape(inputs.mask, "B R", "mask")
        check_shape(inputs.values, "B R", "values", **sizes)
        mask = inputs.mask
        values, old, returns = (
            torch.where(mask, x, 0.0) for x in (inputs.values, inputs.old_values, inputs.returns)
        )
        near = torch.minimum(torch.maximum(values, old - self._range), old + self._range)
        plain, clipped = (values - returns).square(), (near - returns).square()
        stats = {
            "clip_fraction": masked_sum((clipped > plain).float(), mask),
            "value": masked_sum(values, mask),
            "return": masked_sum(returns, mask),
            "squared_error": masked_sum(plain, mask),
        }
        return LossOutput(masked_sum(0.5 * torch.maximum(plain, clipped), mask), stats)


class KLLoss:
    """An estimate of ``KL(pi || pi_ref)`` per token, from the tokens that were sampled.

    With d = log pi - log pi_ref, http://joschu.net/blog/kl-approx.html: k2 is ``d^2 / 2``, k3 is
    ``exp(-d) - 1 + d`` (arXiv:2402.03300, equation 4). On tokens of the policy itself the mean
    gradient of k2 is that of ``KL(pi || pi_ref)`` of the next token, that of k3 is that of
    ``KL(pi_ref || pi)``; neither knows what a token does to the KL of those after it. k1 itself is
    no loss: the mean of its gradient is 0.
    """

    def __init__(self, options: KLOptions) -> None:
        self._estimate = options.estimate

    def count(self, units: Masked) -> Tensor:
        return units.mask.sum()

    def __call__(self, inputs: PolicyLossInputs) -> LossOutput:
        sizes = check_shape(inputs.mask, "B R", "mask")
        check_shape(inputs.logprobs, "B R", "logprobs", **sizes)
        gap = torch.where(inputs.mask, inputs.logprobs - inputs.reference_logprobs, 0.0)
        found = 0.5 * gap.square() if self._estimate == "k2" else torch.expm1(-gap) + gap
        return LossOutput(masked_sum(found, inputs.mask))

"""The losses of InstructGPT. Each returns a sum; the engine divides by the count, once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_kit.ops.masking import masked_sum
from rlhf_kit.types import (
    LossOutput,
    NllInputs,
    PolicyLossInputs,
    PreferenceInputs,
    ValueLossInputs,
    check_shape,
)
from rlhf_kit_instructgpt.options import ClipOptions, NoOptions


class PPOClip:
    """``max(-A rho, -A clip(rho, 1 - e, 1 + e))`` per token, arXiv:1707.06347, equation 7."""

    def __init__(self, options: ClipOptions) -> None:
        self._range = options.clip_range

    def count(self, masks: Any) -> Tensor:
        return masks.mask.sum()

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

    def count(self, masks: Any) -> Tensor:
        return masks.mask.sum()

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


class TokenNLL:
    """Negative log-likelihood, counted per token."""

    def __init__(self, options: NoOptions) -> None:
        pass

    def count(self, masks: Any) -> Tensor:
        return masks.predicted.sum() if hasattr(masks, "predicted") else masks.mask.sum()

    def __call__(self, inputs: NllInputs) -> LossOutput:
        check_shape(inputs.logprobs, "B T", "logprobs", **check_shape(inputs.mask, "B T", "mask"))
        return LossOutput(-masked_sum(inputs.logprobs, inputs.mask))


def better_pairs(ranks: Tensor, mask: Tensor) -> Tensor:
    """[G, K] ranks -> [G, K, K] bool: completion i is ranked strictly better than j. Ties drop."""
    both = mask[:, :, None] & mask[:, None, :]
    return both & (ranks[:, :, None] < ranks[:, None, :])


class Pairwise:
    """``-log sigmoid(r_w - r_l)``, mean over the pairs of a prompt, counted per prompt.

    arXiv:2203.02155, equation 1: with K ranked completions every prompt contributes its C(K, 2)
    pairs with weight 1/C(K, 2). logsigmoid, since log(sigmoid(d)) is -inf below d = -104.
    """

    def __init__(self, options: NoOptions) -> None:
        pass

    def count(self, masks: Any) -> Tensor:
        return better_pairs(masks.ranks, masks.mask).any((1, 2)).sum()

    def __call__(self, inputs: PreferenceInputs) -> LossOutput:
        check_shape(inputs.scores, "G K", "scores", **check_shape(inputs.mask, "G K", "mask"))
        pairs = better_pairs(inputs.ranks, inputs.mask)  # [G, K, K]
        weight = pairs / pairs.sum((1, 2), keepdim=True).clamp(min=1)
        scores = torch.where(inputs.mask, inputs.scores, 0.0)
        margin = scores[:, :, None] - scores[:, None, :]
        stats = {"accuracy": (weight * (margin > 0)).sum(), "margin": (weight * margin).sum()}
        return LossOutput(-(weight * logsigmoid(margin)).sum(), stats)

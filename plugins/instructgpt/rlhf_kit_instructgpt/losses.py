"""The losses of InstructGPT. Each returns a sum; the engine divides by the count, once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_kit.ops.masking import masked_sum
from rlhf_kit.types import LossOutput, Masked, NllInputs, PreferenceInputs, Ranked, check_shape
from rlhf_kit_instructgpt.options import NoOptions, PairwiseOptions


class TokenNLL:
    """Negative log-likelihood, counted per token."""

    def __init__(self, options: NoOptions) -> None:
        pass

    def count(self, units: Masked) -> Tensor:
        return units.mask.sum()

    def __call__(self, inputs: NllInputs) -> LossOutput:
        check_shape(inputs.logprobs, "B T", "logprobs", **check_shape(inputs.mask, "B T", "mask"))
        return LossOutput(-masked_sum(inputs.logprobs, inputs.mask))


class SequenceNLL:
    """Negative log-likelihood summed over each text, counted per text.

    Equation 2 of arXiv:2203.02155 writes ``E log pi(x)`` over texts, which read literally is this;
    it is larger than the mean per token by the length of a text, and gamma must be smaller by it.
    """

    def __init__(self, options: NoOptions) -> None:
        pass

    def count(self, units: Masked) -> Tensor:
        return units.mask.any(1).sum()

    def __call__(self, inputs: NllInputs) -> LossOutput:
        check_shape(inputs.logprobs, "B T", "logprobs", **check_shape(inputs.mask, "B T", "mask"))
        return LossOutput(-masked_sum(inputs.logprobs, inputs.mask))


def better_pairs(ranks: Tensor, mask: Tensor) -> Tensor:
    """[G, K] ranks -> [G, K, K] bool: completion i is ranked strictly better than j.

    Ties drop, and so do the pairs of a completion without a rank (a negative one).
    """
    ranked = mask & (ranks >= 0)
    both = ranked[:, :, None] & ranked[:, None, :]
    return both & (ranks[:, :, None] < ranks[:, None, :])


class Pairwise:
    """``-log sigmoid(r_w - r_l - margin (rank_l - rank_w))``, counted per prompt with a pair.

    arXiv:2203.02155, equation 1: with K ranked completions every prompt contributes its C(K, 2)
    pairs with weight 1/C(K, 2). The paper drops ties; the weight is then one over the number of
    pairs that are kept, or 1/C(K, 2) still. The margin is m(r) of arXiv:2307.09288, equation 2,
    with the difference in rank as the rating. logsigmoid, since log(sigmoid(d)) is -inf below
    d = -104.
    """

    def __init__(self, options: PairwiseOptions) -> None:
        self._all_pairs = options.weights == "all_pairs"
        self._margin = options.margin

    def count(self, units: Ranked) -> Tensor:
        return better_pairs(units.ranks, units.mask).any((1, 2)).sum()

    def __call__(self, inputs: PreferenceInputs) -> LossOutput:
        check_shape(inputs.scores, "G K", "scores", **check_shape(inputs.mask, "G K", "mask"))
        pairs = better_pairs(inputs.ranks, inputs.mask)  # [G, K, K]
        scores = torch.where(inputs.mask, inputs.scores, 0.0)
        kept = pairs.sum((1, 2), keepdim=True)
        mean = pairs.to(scores.dtype) / kept.clamp(min=1)
        weight = mean
        if self._all_pairs:
            ranked = (inputs.mask & (inputs.ranks >= 0)).sum(1)[:, None, None]
            weight = pairs.to(scores.dtype) / (ranked * (ranked - 1) / 2).clamp(min=1)
        gap = inputs.ranks[:, None, :] - inputs.ranks[:, :, None]
        margin = scores[:, :, None] - scores[:, None, :]
        wanted = self._margin * torch.where(pairs, gap, 0).to(scores.dtype)
        stats = {"accuracy": (mean * (margin > 0)).sum(), "margin": (mean * margin).sum()}
        return LossOutput(-(weight * logsigmoid(margin - wanted)).sum(), stats)

"""Estimates of KL(policy || reference) from sampled tokens, and the rewards that penalise it."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kit.ops.sequence import last_index
from rlhf_kit.types import check_shape


def k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Unbiased per-token estimate ``log pi - log ref`` (http://joschu.net/blog/kl-approx.html)."""
    return logprobs - reference


def sequence_kl(logprobs: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """[B, R] -> [B]: sum of k1 over each response. Its batch mean is the KL to report."""
    return torch.where(mask, k1(logprobs, reference), 0.0).sum(1)


def kl_penalised_rewards(
    scores: Tensor,
    logprobs: Tensor,
    reference: Tensor,
    mask: Tensor,
    coefficient: float,
    score_index: Tensor | None = None,
) -> Tensor:
    """Per-token rewards ``-coefficient * k1``, plus the score at one place of the row.

    arXiv:2203.02155, equation 2, with the KL term spread over the tokens that cause it, as in
    openai/lm-human-preferences. The sampled k1 is the estimator whose policy gradient is exact.

    Args:
        scores: [B]. logprobs, reference, mask: [B, R].
        score_index: [B] int64, the column that receives the score; None: the last valid one.

    Returns:
        [B, R] float32, zero where ``mask`` is False and no score stands.
    """
    sizes = check_shape(mask, "B R", "mask")
    check_shape(scores, "B", "scores", B=sizes["B"])
    rewards = torch.where(mask, -coefficient * k1(logprobs, reference), 0.0)
    rows = mask.any(1).nonzero().squeeze(1)
    columns = last_index(mask) if score_index is None else score_index
    rewards[rows, columns[rows]] += scores[rows].to(rewards.dtype)
    return rewards

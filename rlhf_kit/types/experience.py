"""What is known of a rollout before anything is learned from it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Experience:
    """All that an advantage estimator may read.

    ``scores`` is what the algorithm maximises of each response: the reward, a missing end dealt
    with, normalised where the recipe says so, and without any KL. ``rewards`` is the same laid on
    the tokens: each score at one of ``places``, and where the recipe makes the KL a reward its
    penalty at the tokens that cause it. An estimator reads the one or the other.
    """

    scores: Tensor  # [B] float32
    rewards: Tensor  # [B, R] float32, zero where places is False
    logprobs: Tensor  # [B, R], of the policy that sampled
    reference_logprobs: Tensor  # [B, R], of the frozen reference
    values: Tensor | None  # [B, R]; None unless the estimator's component needs "values"
    mask: Tensor  # [B, R] bool: the tokens that the policy chose
    places: Tensor  # [B, R] bool: where rewards and values are; mask, perhaps one place after it
    group: Tensor  # [B] int64: which responses answer the same prompt

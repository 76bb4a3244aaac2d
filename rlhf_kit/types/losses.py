"""What losses read and what they return: sums, never means. The engine divides, once."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, eq=False)
class PolicyLossInputs:
    """All [B, R]."""

    logprobs: Tensor  # of the policy being trained
    old_logprobs: Tensor  # of the policy that sampled
    advantages: Tensor
    mask: Tensor


@dataclass(frozen=True, eq=False)
class ValueLossInputs:
    """All [B, R]."""

    values: Tensor
    old_values: Tensor
    returns: Tensor
    mask: Tensor


@dataclass(frozen=True, eq=False)
class NllInputs:
    """Negative log-likelihood of given tokens. Both [B, T-1]."""

    logprobs: Tensor
    mask: Tensor


@dataclass(frozen=True, eq=False)
class PreferenceInputs:
    """K-way comparisons: scores and ranks of K completions of each of G prompts, all [G, K]."""

    scores: Tensor
    ranks: Tensor  # int64, 0 = best, equal = tied, negative = not ranked
    mask: Tensor  # which completions exist


@dataclass(frozen=True, eq=False)
class LossOutput:
    """``total`` [] is a sum over the units that ``Loss.count`` counts; so is every statistic."""

    total: Tensor
    stats: dict[str, Tensor] = field(default_factory=dict)

"""What losses read and what they return: sums, never means. The engine divides, once."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Masked:
    """What is counted of most losses: the valid places alone."""

    mask: Tensor  # [B, W] bool, or [B] where whole rows are counted


@dataclass(frozen=True, eq=False)
class Ranked:
    """What is counted of a loss over comparisons. Both [G, K]."""

    ranks: Tensor
    mask: Tensor


@dataclass(frozen=True, eq=False)
class SampledUnits:
    """What is counted of a policy's loss: all that is known before the policy has answered."""

    mask: Tensor  # [B, R] bool
    old_logprobs: Tensor  # [B, R]
    group: Tensor  # [B] int64


@dataclass(frozen=True, eq=False)
class PolicyLossInputs:
    """Responses of the policy that is trained. All [B, R] but ``group``."""

    logprobs: Tensor  # of the policy being trained
    old_logprobs: Tensor  # of the policy that sampled, by the arithmetic that trains
    advantages: Tensor
    mask: Tensor
    reference_logprobs: Tensor  # of the frozen reference
    sampled_logprobs: Tensor  # by the sampler's own arithmetic; the old ones where it does not say
    group: Tensor  # [B] int64: which responses answer the same prompt


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
class PairInputs:
    """Two answers to each of B prompts, by their summed log-probabilities. All [B]."""

    chosen: Tensor  # of the policy being trained
    rejected: Tensor
    reference_chosen: Tensor  # of the frozen reference
    reference_rejected: Tensor
    chosen_tokens: Tensor  # int64, how many the sum is over
    rejected_tokens: Tensor
    mask: Tensor  # bool: which pairs exist


@dataclass(frozen=True, eq=False)
class LabelledInputs:
    """One answer to each of B prompts, judged by itself, by its summed log-probability. All [B]."""

    logprobs: Tensor  # of the policy being trained
    reference_logprobs: Tensor
    desirable: Tensor  # bool
    tokens: Tensor  # int64, how many the sum is over
    mask: Tensor  # bool: which answers exist


@dataclass(frozen=True, eq=False)
class MismatchedInputs:
    """B prompts, each with the answer to another one, for losses that tell the KL from them.

    All [B], without gradients.
    """

    mismatched: Tensor  # summed log-probabilities of the policy being trained
    reference_mismatched: Tensor
    mask: Tensor  # bool: which answers exist


@dataclass(frozen=True, eq=False)
class LossOutput:
    """``total`` [] is a sum over the units that ``Loss.count`` counts; so is every statistic."""

    total: Tensor
    stats: dict[str, Tensor] = field(default_factory=dict)

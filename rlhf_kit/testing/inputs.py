"""What losses and estimators read, from the few tensors that a test by hand is about."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kit.types import Experience, PolicyLossInputs


def made_up_experience(
    rewards: Tensor,
    mask: Tensor,
    *,
    values: Tensor | None = None,
    group: Tensor | None = None,
    logprobs: Tensor | None = None,
    reference_logprobs: Tensor | None = None,
) -> Experience:
    """An experience whose scores are the sums of its rewards, as without a KL penalty.

    Args:
        rewards: [B, R].
        mask: [B, R] bool, of the tokens; there is no place after the end.
        values: [B, R]; None for an estimator that needs none.
        group: [B] int64; None: every response answers a prompt of its own.
        logprobs: [B, R] of the policy that sampled; None: -1 each.
        reference_logprobs: [B, R]; None: those of the policy.
    """
    logprobs = torch.full_like(rewards, -1.0) if logprobs is None else logprobs
    return Experience(
        scores=torch.where(mask, rewards, 0.0).sum(1),
        rewards=rewards,
        logprobs=logprobs,
        reference_logprobs=logprobs if reference_logprobs is None else reference_logprobs,
        values=values,
        mask=mask,
        places=mask,
        group=torch.arange(len(mask)) if group is None else group,
    )


def made_up_policy_inputs(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    reference_logprobs: Tensor | None = None,
    sampled_logprobs: Tensor | None = None,
    group: Tensor | None = None,
) -> PolicyLossInputs:
    """Inputs of a policy's loss, all [B, R] but ``group`` [B].

    Reference and sampler agree with the old log-probabilities, and every response answers a prompt
    of its own, unless given.
    """
    return PolicyLossInputs(
        logprobs,
        old_logprobs,
        advantages,
        mask,
        old_logprobs if reference_logprobs is None else reference_logprobs,
        old_logprobs if sampled_logprobs is None else sampled_logprobs,
        torch.arange(len(mask)) if group is None else group,
    )

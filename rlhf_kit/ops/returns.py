"""Generalized advantage estimation, arXiv:1506.02438."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kit.types import check_shape


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, discount: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Advantages ``A_t = sum_l (discount * lam)^l delta_{t+l}`` and returns ``A + V``.

    arXiv:1506.02438, equation 16, with ``delta_t = r_t + discount * V_{t+1} - V_t`` and V = 0
    after the last valid token. The reward, the next value and the carry are all masked, so that
    what stands in the padding cannot leak into a row.

    Args:
        rewards, values, mask: [B, R].

    Returns:
        advantages and returns, [B, R], zero where ``mask`` is False.
    """
    sizes = check_shape(mask, "B R", "mask")
    check_shape(rewards, "B R", "rewards", **sizes)
    check_shape(values, "B R", "values", **sizes)
    rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    advantages = torch.zeros_like(rewards)
    carry = next_value = rewards.new_zeros(sizes["B"])
    for t in reversed(range(sizes["R"])):
        delta = rewards[:, t] + discount * next_value - values[:, t]
        carry = torch.where(mask[:, t], delta + discount * lam * carry, 0.0)
        next_value = values[:, t]
        advantages[:, t] = carry
    return advantages, advantages + values

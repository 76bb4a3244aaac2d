"""Statistics over the valid part of a tensor; padding never reaches a result."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Total = Callable[[Tensor], Tensor]
"""A sum of this process -> the sum over all processes (World.sum)."""


def alone(x: Tensor) -> Tensor:
    """Of one process."""
    return x


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of ``x`` where ``mask``; garbage (even NaN) elsewhere does not matter. Returns []."""
    return torch.where(mask, x, 0.0).sum()


def masked_mean(x: Tensor, mask: Tensor, total: Total = alone) -> Tensor:
    """Mean of ``x`` where ``mask``. Returns []; NaN when the mask is empty."""
    return total(masked_sum(x, mask)) / total(mask.sum())


def masked_var(x: Tensor, mask: Tensor, *, unbiased: bool, total: Total = alone) -> Tensor:
    """Variance of ``x`` where ``mask``, divided by n, or by n - 1 when ``unbiased``. Returns []."""
    squares = total(masked_sum((x - masked_mean(x, mask, total)).square(), mask))
    return squares / (total(mask.sum()) - int(unbiased)).clamp(min=1)


def whiten(
    x: Tensor,
    mask: Tensor,
    *,
    shift_mean: bool = True,
    unbiased: bool = False,
    eps: float = 1e-8,
    total: Total = alone,
) -> Tensor:
    """Scale ``x`` to unit variance over the mask; zero elsewhere.

    Args:
        x, mask: tensors of one shape.
        shift_mean: also move the mean to 0. Rewards keep theirs (``shift_mean=False``), as in
            openai/lm-human-preferences ``utils.whiten``.
        unbiased: divide the variance by n - 1 (TRL) rather than n (lm-human-preferences).
        eps: added to the variance.
        total: over the processes among which the batch is divided.
    """
    mean = masked_mean(x, mask, total)
    white = (x - mean) * torch.rsqrt(masked_var(x, mask, unbiased=unbiased, total=total) + eps)
    return torch.where(mask, white if shift_mean else white + mean, 0.0)

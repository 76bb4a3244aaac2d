"""A world of one process, and averages over the processes of any."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_kit.interfaces import World


@dataclass(frozen=True)
class OneProcess:
    """Implements rlhf_kit.interfaces.World."""

    rank: int = 0
    size: int = 1

    def sum(self, x: Tensor) -> Tensor:
        return x


def world_mean(world: World, x: Tensor, mask: Tensor | None = None) -> float:
    """The mean of ``x`` where ``mask``, of the same shape, over all processes."""
    mask = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    total = world.sum(torch.where(mask, x, 0.0).sum())
    return (total / world.sum(mask.sum())).item()


def world_variance(world: World, x: Tensor, mask: Tensor | None = None) -> float:
    """The mean squared distance to the mean, over all processes."""
    gap = x - world_mean(world, x, mask)
    return world_mean(world, gap.square(), mask)

"""A world of one process, and averages over the processes of any."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_kit.interfaces import World
from rlhf_kit.ops.masking import masked_mean, masked_var


@dataclass(frozen=True)
class OneProcess:
    """Implements rlhf_kit.interfaces.World."""

    rank: int = 0
    size: int = 1

    def sum(self, x: Tensor) -> Tensor:
        return x


ALONE = OneProcess()


def world_mean(world: World, x: Tensor, mask: Tensor | None = None) -> float:
    """The mean of ``x`` where ``mask``, of the same shape, over all processes."""
    return masked_mean(x, _everywhere(x, mask), world.sum).item()


def world_variance(world: World, x: Tensor, mask: Tensor | None = None) -> float:
    """The mean squared distance to the mean, over all processes."""
    return masked_var(x, _everywhere(x, mask), unbiased=False, total=world.sum).item()


def _everywhere(x: Tensor, mask: Tensor | None) -> Tensor:
    return torch.ones_like(x, dtype=torch.bool) if mask is None else mask

"""How sure an average is, where what is averaged comes in groups that are not independent."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kit.types import check_shape

_BLOCK = 2**20  # indices at once: 8 MiB, and as much again for what they pick


def bootstrap_interval(
    sums: Tensor,
    counts: Tensor,
    generator: torch.Generator,
    level: float = 0.95,
    draws: int = 2000,
) -> tuple[float, float]:
    """Percentile bootstrap interval of ``sums.sum() / counts.sum()``, over groups.

    Whole groups (the prompts) are drawn with replacement, since members of one (its samples, or
    its pairs) are not independent.

    Args:
        sums: [N], of each group the sum of what is averaged.
        counts: [N], of each group how much that is; for a mean of N values, ones.
        generator: on the CPU; the same seed gives the same interval.
        level: of confidence.
        draws: how many resamples; one in which nothing is counted is left out.

    Returns:
        low and high; NaN when nothing is counted at all.
    """
    check_shape(counts, "N", "counts", **check_shape(sums, "N", "sums"))
    sums, counts = sums.double().cpu(), counts.double().cpu()
    means = torch.cat([_means(sums, counts, size, generator) for size in _blocks(draws, len(sums))])
    tail = (1 - level) / 2
    low, high = torch.nanquantile(means, torch.tensor([tail, 1 - tail]).double()).tolist()
    return low, high


def _means(sums: Tensor, counts: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """[draws] means of as many resamples of the groups."""
    index = torch.randint(len(sums), (draws, len(sums)), generator=generator)
    picked = counts[index].sum(1)
    return sums[index].sum(1) / picked


def _blocks(draws: int, groups: int) -> list[int]:
    """Draws cut into blocks of about one size; the random numbers go on from block to block.

    None of one draw, whose sum torch takes over several threads and so rounds differently.
    """
    count = max(1, min(draws // 2, draws * groups // _BLOCK))
    return [len(block) for block in torch.arange(draws).tensor_split(count)]

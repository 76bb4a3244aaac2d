"""How sure an average is, where what is averaged comes in groups that are not independent."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kit.types import check_shape


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
    index = torch.randint(len(sums), (draws, len(sums)), generator=generator)
    means = sums[index].sum(1) / counts[index].sum(1)
    tail = (1 - level) / 2
    low, high = torch.nanquantile(means, torch.tensor([tail, 1 - tail]).double()).tolist()
    return low, high

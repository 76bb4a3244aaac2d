"""How good scores are on held-out comparisons: accuracy, calibration, and a taste for length.

Legend: G prompts, K completions, N pairs. A pair is (i, j) with i ranked better; its margin is
the score of i less that of j.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlhf_kit.ops.bootstrap import bootstrap_interval
from rlhf_kit.types import check_shape

Bins = list[dict[str, float]]


def right(scores: Tensor) -> Tensor:
    """[G, K] scores -> [G, K, K]: 1 where i scores above j, 1/2 where they are equal, else 0."""
    gap = scores[:, :, None] - scores[:, None, :]
    return (gap > 0).double() + 0.5 * (gap == 0).double()


def accuracy(scores: Tensor, pairs: Tensor) -> float:
    """Share of ``pairs`` [G, K, K] that ``scores`` [G, K] orders rightly; equal counts half.

    NaN without pairs.
    """
    check_shape(pairs, "G K K", "pairs", **check_shape(scores, "G K", "scores"))
    return right(scores)[pairs].mean().item()


def accuracy_interval(
    scores: Tensor, pairs: Tensor, generator: torch.Generator
) -> tuple[float, float]:
    """95 % bootstrap interval of :func:`accuracy`, over prompts: pairs of one share completions."""
    found = torch.where(pairs, right(scores), 0.0).sum((1, 2))
    return bootstrap_interval(found, pairs.sum((1, 2)), generator)


def pair_margins(scores: Tensor, pairs: Tensor) -> Tensor:
    """[N] margins of ``pairs`` [G, K, K]."""
    return (scores[:, :, None] - scores[:, None, :])[pairs]


def brier(margins: Tensor) -> float:
    """``mean (1 - sigmoid(margin))^2`` over pairs [N]: 0 is perfect, 1/4 is a coin's."""
    return (1 - margins.double().sigmoid()).square().mean().item()


def reliability(margins: Tensor, bins: int = 10) -> Bins:
    """How often a prediction of some confidence is right.

    The scores call one of a pair better with probability ``sigmoid(|margin|)``, between 1/2 and 1.
    Pairs are put into ``bins`` of equal width by that confidence.

    Returns:
        For each bin ``predicted``, the mean confidence; ``right``, the share of pairs whose better
        one was called better, equal scores counting half; and ``count``. NaN in an empty bin.
    """
    check_shape(margins, "N", "margins")
    margins = margins.double()
    confidence = margins.abs().sigmoid()
    hits = (margins > 0).double() + 0.5 * (margins == 0).double()
    place = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    found = []
    for b in range(bins):
        here = place == b
        found.append(
            {
                "predicted": confidence[here].mean().item(),
                "right": hits[here].mean().item(),
                "count": float(here.sum()),
            }
        )
    return found


def calibration_error(bins: Bins) -> float:
    """Expected calibration error ``sum_b n_b / N |right_b - predicted_b|`` (arXiv:1706.04599,

    equation 3). NaN without pairs.
    """
    total = sum(b["count"] for b in bins)
    if not total:
        return math.nan
    gaps = (b["count"] * abs(b["right"] - b["predicted"]) for b in bins if b["count"])
    return sum(gaps) / total


def average_ranks(x: Tensor, mask: Tensor) -> Tensor:
    """[G, K] -> [G, K]: the rank of each valid value in its row from 1, ties sharing their mean."""
    both = mask[:, :, None] & mask[:, None, :]
    below = (both & (x[:, None, :] < x[:, :, None])).sum(2)
    equal = (both & (x[:, None, :] == x[:, :, None])).sum(2)
    return torch.where(mask, below + (equal + 1) / 2, 0.0).double()


def length_correlation(scores: Tensor, lengths: Tensor, mask: Tensor) -> float:
    """Spearman correlation of score and response length within a prompt, averaged over prompts.

    Over prompts with at least two lengths; equal scores throughout a prompt correlate by 0. NaN
    where no prompt has two lengths.

    Args:
        scores, lengths: [G, K]; lengths in tokens.
        mask: [G, K] bool, which completions exist.
    """
    sizes = check_shape(mask, "G K", "mask")
    check_shape(scores, "G K", "scores", **sizes)
    check_shape(lengths, "G K", "lengths", **sizes)
    count = mask.sum(1, keepdim=True).clamp(min=1)
    x, y = (
        torch.where(mask, ranks - ranks.sum(1, keepdim=True) / count, 0.0)
        for ranks in (average_ranks(scores, mask), average_ranks(lengths, mask))
    )
    spread_x, spread_y = x.square().sum(1), y.square().sum(1)
    found = (x * y).sum(1) / (spread_x * spread_y).sqrt().clamp(min=1e-12)
    return found[spread_y > 0].mean().item()


def length_figures(
    scores: Tensor, lengths: Tensor, mask: Tensor, pairs: Tensor
) -> dict[str, float]:
    """What a taste for long or short answers does to ``scores``; see the keys.

    ``longer_wins`` is the accuracy of "the longer one is better", equal lengths counting half: a
    reward model that is no better has learned nothing else.
    """
    shorter = lengths[:, :, None] < lengths[:, None, :]
    return {
        "length_correlation": length_correlation(scores, lengths, mask),
        "longer_wins": accuracy(lengths.double(), pairs),
        "accuracy_better_is_shorter": accuracy(scores, pairs & shorter),
        "accuracy_better_is_longer": accuracy(scores, pairs & shorter.transpose(1, 2)),
    }

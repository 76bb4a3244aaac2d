"""Figures about scores on comparisons, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from rlhf_kit_instructgpt.losses import better_pairs
from rlhf_kit_instructgpt.preference_metrics import (
    accuracy,
    accuracy_interval,
    average_ranks,
    brier,
    calibration_error,
    length_correlation,
    length_figures,
    pair_margins,
    reliability,
)
from torch import Tensor

from rlhf_kit.ops.bootstrap import bootstrap_interval

# Two prompts: three completions, best first; two completions, the second one better.
SCORES = torch.tensor([[3.0, 1.0, 2.0], [0.5, 0.5, 9.0]])
RANKS = torch.tensor([[0, 1, 2], [1, 0, 0]])
MASK = torch.tensor([[True, True, True], [True, True, False]])
PAIRS = better_pairs(RANKS, MASK)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_accuracy() -> None:
    """3 > 1 and 3 > 2 are right, 1 > 2 is not, and 0.5 = 0.5 is half right: 2.5 of 4."""
    assert PAIRS.sum().item() == 4
    assert accuracy(SCORES, PAIRS) == 2.5 / 4
    assert math.isnan(accuracy(SCORES, torch.zeros_like(PAIRS)))
    assert sorted(pair_margins(SCORES, PAIRS).tolist()) == [-1.0, 0.0, 1.0, 2.0]


def test_pairs_without_a_rank() -> None:
    ranks = torch.tensor([[0, -1, 1]])
    pairs = better_pairs(ranks, torch.ones_like(ranks, dtype=torch.bool))
    assert pairs.nonzero().tolist() == [[0, 0, 2]]


def test_bootstrap_interval() -> None:
    """Two groups, 0 of 1 and 2 of 2: a resample gives 0, 2/3 or 1, with chances 1/4, 1/2, 1/4."""
    sums, counts = torch.tensor([0.0, 2.0]), torch.tensor([1, 2])
    assert bootstrap_interval(sums, counts, generator()) == (0.0, 1.0)
    low, high = bootstrap_interval(sums, counts, generator(), level=0.4)
    assert low == high == pytest.approx(2 / 3)
    sure = bootstrap_interval(torch.ones(5), torch.ones(5), generator())
    assert sure == (1.0, 1.0)
    # A group without pairs adds nothing; a resample of such groups alone is left out.
    assert bootstrap_interval(torch.tensor([0.0, 1.0]), torch.tensor([0, 1]), generator()) == (1, 1)
    assert all(map(math.isnan, bootstrap_interval(torch.zeros(2), torch.zeros(2), generator())))


def test_bootstrap_interval_is_that_of_the_normal_for_many_groups() -> None:
    """400 coins: a half, give or take 1.96 x 0.5 / 20 = 0.049."""
    coins = (torch.arange(400) % 2).float()
    low, high = bootstrap_interval(coins, torch.ones(400), generator())
    assert low == pytest.approx(0.451, abs=0.01)
    assert high == pytest.approx(0.549, abs=0.01)
    assert (low, high) == bootstrap_interval(coins, torch.ones(400), generator())


def test_accuracy_interval_is_over_prompts() -> None:
    """Three pairs that stand or fall together are one observation."""
    scores = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    ranks, mask = torch.tensor([[0, 1, 2]] * 2), torch.ones((2, 3), dtype=torch.bool)
    assert accuracy_interval(scores, better_pairs(ranks, mask), generator()) == (0.0, 1.0)


def margins(*confident: float) -> Tensor:
    """Margins that give these probabilities to the better one."""
    p = torch.tensor(confident, dtype=torch.float64)
    return (p / (1 - p)).log()


def test_brier() -> None:
    """(0.1^2 + 0.8^2 + 0.5^2) / 3"""
    assert brier(margins(0.9, 0.2, 0.5)) == pytest.approx((0.01 + 0.64 + 0.25) / 3)


def test_reliability() -> None:
    """Confidences 0.52, 0.53 (wrong), 0.87, 0.99 and 0.5: bins 0, 0, 7, 9 and, half right, 0."""
    bins = reliability(margins(0.52, 0.47, 0.87, 0.99, 0.5))
    assert [b["count"] for b in bins] == [3, 0, 0, 0, 0, 0, 0, 1, 0, 1]
    assert bins[0]["predicted"] == pytest.approx((0.52 + 0.53 + 0.5) / 3)
    assert bins[0]["right"] == pytest.approx(1.5 / 3)
    assert (bins[7]["predicted"], bins[7]["right"]) == (pytest.approx(0.87), 1.0)
    assert math.isnan(bins[1]["right"])
    wanted = (abs(0.52 + 0.53 + 0.5 - 1.5) + 0.13 + 0.01) / 5
    assert calibration_error(bins) == pytest.approx(wanted)
    assert sum(b["count"] for b in reliability(torch.tensor([1e4, -1e4]))) == 2
    assert math.isnan(calibration_error(reliability(torch.zeros(0))))


def test_average_ranks() -> None:
    x = torch.tensor([[5.0, 1.0, 5.0, -9.0], [0.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True, False], [True] * 4])
    assert average_ranks(x, mask).tolist() == [[2.5, 1.0, 2.5, 0.0], [2.5, 2.5, 2.5, 2.5]]


def test_length_correlation() -> None:
    """Ranks (1, 2, 3) against (1, 3, 2): 1 - 6 x 2 / (3 x 8) = 1/2; one length drops."""
    scores = torch.tensor([[0.1, 0.2, 7.0], [3.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
    lengths = torch.tensor([[4, 40, 9], [6, 6, 6], [1, 2, 3]])
    mask = torch.ones((3, 3), dtype=torch.bool)
    first = length_correlation(scores[:1], lengths[:1], mask[:1])
    assert first == pytest.approx(0.5)
    assert length_correlation(scores[:2], lengths[:2], mask[:2]) == pytest.approx(0.5)
    # Equal scores throughout count as no correlation.
    assert length_correlation(scores, lengths, mask) == pytest.approx(0.25)
    assert math.isnan(length_correlation(scores[1:2], lengths[1:2], mask[1:2]))
    part = torch.tensor([[True, True, False]])
    assert length_correlation(scores[:1], lengths[:1], part) == pytest.approx(1.0)


def test_length_figures() -> None:
    """Of the pairs (0, 1), (0, 2), (1, 2) of the first prompt the better one is longer, of equal

    length, shorter; of the second prompt's pair it is longer.
    """
    lengths = torch.tensor([[5, 3, 5], [2, 8, 0]])
    found = length_figures(SCORES, lengths, MASK, PAIRS)
    assert found["longer_wins"] == (1 + 0.5 + 0 + 1) / 4
    assert found["accuracy_better_is_longer"] == (1 + 0.5) / 2
    assert found["accuracy_better_is_shorter"] == 0.0
    # Ranks (3, 1, 2) and (2.5, 1, 2.5) of the first prompt; equal scores in the second.
    assert found["length_correlation"] == pytest.approx(math.sqrt(0.75) / 2)

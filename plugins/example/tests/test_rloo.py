"""The estimator, through rlhf-kit's fixtures, by hand, and on a policy that can be enumerated."""

from __future__ import annotations

import pytest
import torch
from rlhf_kit_example.options import RLOOOptions
from rlhf_kit_example.rloo import RLOO

from rlhf_kit import RecipeError
from rlhf_kit.testing import made_up_experience


def test_conforms(check_advantage) -> None:
    check_advantage(RLOO(RLOOOptions()), needs={"groups", "own_normalization"})


def test_by_hand() -> None:
    """Sums 1, 2, 6 for one prompt: minus the mean of the other two. 3 and 5 for another."""
    rewards = torch.tensor([[0.5, 0.5], [3.0, 0.0], [2.0, 9.0], [5.0, 0.0], [1.0, 5.0]])
    mask = torch.tensor([[True, True], [True, True], [True, False], [True, True], [True, True]])
    found = RLOO(RLOOOptions())(
        made_up_experience(rewards, mask, group=torch.tensor([7, 1, 7, 1, 7]))
    )
    assert found.advantages.tolist() == [
        [-3.0, -3.0],
        [-2.0, -2.0],
        [-1.5, 0.0],
        [2, 2],
        [4.5, 4.5],
    ]
    assert found.returns.tolist() == [[1.0, 1.0], [3.0, 3.0], [2.0, 0.0], [5.0, 5.0], [6.0, 6.0]]


def test_one_response_is_refused() -> None:
    with pytest.raises(RecipeError, match="set samples_per_prompt to 2 or more"):
        RLOO(RLOOOptions())(made_up_experience(torch.zeros(2, 1), torch.ones(2, 1).bool()))


def test_the_gradient_is_unbiased(tabular_policy) -> None:
    """Over all pairs of the 15 responses, the expected gradient is that of the expected score."""
    samples = tabular_policy.all_samples()
    mask, count = samples.response_mask, len(samples)
    scores = torch.randn(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logprobs = tabular_policy.evaluate(samples).logprobs
    probability = logprobs.sum(1).exp()
    objective = (probability * scores).sum()
    (wanted,) = torch.autograd.grad(objective, tabular_policy.table, retain_graph=True)
    rewards = torch.zeros_like(logprobs).detach()
    rewards[:, 0] = scores
    first, second = torch.cartesian_prod(torch.arange(count), torch.arange(count)).T
    rows = torch.cat([first, second])
    group = torch.arange(count**2).repeat(2)
    experience = made_up_experience(rewards[rows], mask[rows], group=group)
    advantages = RLOO(RLOOOptions())(experience).advantages
    weight = (probability[first] * probability[second]).detach().repeat(2) / 2
    surrogate = (weight * (advantages * logprobs[rows]).sum(1)).sum()
    (found,) = torch.autograd.grad(surrogate, tabular_policy.table)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)

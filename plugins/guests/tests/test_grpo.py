"""GRPO, through rlhf-kit's fixtures, by hand, against loops, and its k3 by its derivative."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from rlhf_kit_guests.grpo import GRPO, GroupAdvantage
from rlhf_kit_guests.options import GroupOptions, GRPOOptions
from torch import Tensor

from rlhf_kit.testing import made_up_experience, made_up_policy_inputs
from rlhf_kit.types import PolicyLossInputs, SampledUnits

NEEDS = {"groups", "own_normalization", "scores"}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_estimator_conforms(check_advantage, seed: int) -> None:
    check_advantage(GroupAdvantage(GroupOptions()), needs=NEEDS, seed=seed)


@pytest.mark.parametrize("options", [GRPOOptions(), GRPOOptions(clip_range=0.1, beta=0.5)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_loss_conforms(check_policy_loss, options: GRPOOptions, seed: int) -> None:
    check_policy_loss(GRPO(options), needs={"own_kl"}, seed=seed)


def test_advantages_by_hand() -> None:
    """Scores 1, 2, 6 of one prompt: mean 3, deviation sqrt(14/3); 4 and 4 of another: nothing."""
    rewards = torch.tensor([[0.5, 0.5], [4.0, 0.0], [2.0, 9.0], [4.0, 0.0], [1.0, 5.0]])
    mask = torch.tensor([[True, True], [True, True], [True, False], [True, True], [True, True]])
    group = torch.tensor([7, 1, 7, 1, 7])
    experience = made_up_experience(rewards, mask, group=group)
    found = GroupAdvantage(GroupOptions(eps=1e-9))(experience)
    wanted = [[-0.9258, -0.9258], [0.0, 0.0], [-0.4629, 0.0], [0.0, 0.0], [1.3887, 1.3887]]
    assert found.advantages.tolist() == [pytest.approx(row, abs=1e-4) for row in wanted]
    assert found.returns.tolist() == [[1.0, 1.0], [4.0, 4.0], [2.0, 0.0], [4.0, 4.0], [6.0, 6.0]]


def test_a_penalty_in_the_rewards_is_not_read() -> None:
    """The KL is the loss's: what the recipe would take off the tokens changes nothing."""
    rewards, mask = torch.randn((6, 3), generator=seeded(0)), torch.ones((6, 3)).bool()
    plain = made_up_experience(rewards, mask, group=torch.arange(6) // 3)
    penalised = replace(plain, rewards=rewards - 0.3)
    estimator = GroupAdvantage(GroupOptions())
    assert torch.equal(estimator(penalised).advantages, estimator(plain).advantages)


@pytest.mark.parametrize("seed", range(3))
def test_advantages_against_loops(seed: int) -> None:
    """``(r_i - mean(r)) / (std(r) + eps)`` within a group, arXiv:2402.03300, section 4.1.2."""
    scores = torch.randn(12, generator=seeded(seed), dtype=torch.float64)
    group = torch.randint(0, 4, (12,), generator=seeded(seed + 9))
    mask = torch.arange(5) < torch.randint(1, 6, (12, 1), generator=seeded(seed))
    rewards = torch.zeros((12, 5), dtype=torch.float64)
    rewards[:, 0] = scores
    found = GroupAdvantage(GroupOptions(eps=0.01))(made_up_experience(rewards, mask, group=group))
    for i in range(12):
        same = [scores[j].item() for j in range(12) if group[j] == group[i]]
        mean = sum(same) / len(same)
        deviation = math.sqrt(sum((s - mean) ** 2 for s in same) / len(same))
        wanted = (scores[i].item() - mean) / (deviation + 0.01)
        row = [wanted if mask[i, t] else 0.0 for t in range(5)]
        assert found.advantages[i].tolist() == pytest.approx(row, abs=1e-12)


def test_the_loss_by_hand() -> None:
    """One answer of two tokens, one of one; the third is padding alone.

    Ratios 2 and 1/2 at A = 1: 1.2 and 0.5, mean 0.85. Ratio 1/2 at A = -1: min(-0.5, -0.8).
    Reference over policy is 1/2, 1 and 2: k3 = 1/2 + ln 2 - 1, 0 and 2 - ln 2 - 1.
    """
    new = torch.tensor([[2.0, 0.5], [0.5, 9.0], [3.0, 3.0]]).log()
    reference = torch.tensor([[1.0, 0.5], [1.0, 7.0], [5.0, 5.0]]).log()
    advantages = torch.tensor([[1.0, 1.0], [-1.0, 9.0], [4.0, 4.0]])
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    inputs = made_up_policy_inputs(
        new, torch.zeros(3, 2), advantages, mask, reference_logprobs=reference
    )
    loss = GRPO(GRPOOptions(clip_range=0.2, beta=0.5))
    output = loss(inputs)
    k3 = (0.5 + math.log(2) - 1) / 2, 2 - math.log(2) - 1
    assert output.total.item() == pytest.approx(-0.85 + 0.8 + 0.5 * sum(k3), abs=1e-6)
    assert output.stats["kl"].item() == pytest.approx(sum(k3), abs=1e-6)
    assert output.stats["ratio"].item() == pytest.approx(1.25 + 0.5, abs=1e-6)
    assert loss.count(SampledUnits(mask, inputs.old_logprobs, inputs.group)).item() == 2


def made_up(seed: int) -> PolicyLossInputs:
    """Seven answers of up to six tokens, in float64."""
    old, step, away, advantages = torch.randn((4, 7, 6), generator=seeded(seed)).double()
    mask = torch.arange(6) < torch.randint(1, 7, (7, 1), generator=seeded(seed))
    old = old - 3
    return made_up_policy_inputs(
        old + 0.3 * step, old, advantages, mask, reference_logprobs=old + 0.4 * away
    )


@pytest.mark.parametrize("seed", range(4))
def test_the_loss_against_loops(seed: int) -> None:
    """arXiv:2402.03300, equation 3 with the KL of equation 4, as a sum over answers."""
    inputs, total = made_up(seed), 0.0
    new, old, reference, advantages = (
        x.tolist()
        for x in (
            inputs.logprobs,
            inputs.old_logprobs,
            inputs.reference_logprobs,
            inputs.advantages,
        )
    )
    for i, valid in enumerate(inputs.mask.tolist()):
        gains = []
        for t in range(6):
            if valid[t]:
                rho = math.exp(new[i][t] - old[i][t])
                clipped = min(max(rho, 0.9), 1.1)
                other = math.exp(reference[i][t]) / math.exp(new[i][t])
                kl = other - math.log(other) - 1
                a = advantages[i][t]
                gains.append(min(rho * a, clipped * a) - 0.3 * kl)
        total -= sum(gains) / len(gains)
    found = GRPO(GRPOOptions(clip_range=0.1, beta=0.3))(inputs).total
    assert found.item() == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("seed", range(2))
def test_the_gradient_of_k3_is_its_derivative(seed: int) -> None:
    """d/d log pi of ``pi_ref / pi - log(pi_ref / pi) - 1`` is ``1 - pi_ref / pi``.

    Without advantages it is all that the loss pulls by, each answer's mean over its own tokens.
    """
    inputs = made_up(seed)
    inputs.advantages.zero_()
    inputs.logprobs.requires_grad_()
    total = GRPO(GRPOOptions(beta=0.7))(inputs).total
    (found,) = torch.autograd.grad(total, inputs.logprobs)
    wanted = [
        [
            0.7 * (1 - math.exp(reference - new)) / sum(valid) if counts else 0.0
            for new, reference, counts in zip(*row, valid, strict=True)
        ]
        for *row, valid in zip(
            inputs.logprobs.tolist(),
            inputs.reference_logprobs.tolist(),
            inputs.mask.tolist(),
            strict=True,
        )
    ]
    torch.testing.assert_close(found, torch.tensor(wanted).double(), rtol=0, atol=1e-7)
    assert found.abs().max() > 0.05


def test_the_expected_gradient_is_that_of_the_reverse_kl(tabular_policy) -> None:
    """Over all responses, k3's gradient on samples of the policy is that of KL(reference || pi).

    For one token after a given prefix, weighed as the policy reaches it: what k3 in a loss means.
    """
    samples = tabular_policy.all_samples()
    reference = torch.randn((13, 3), generator=seeded(3), dtype=torch.float64).log_softmax(1)
    table = tabular_policy.table
    prefixes = tabular_policy.prefixes(samples.response_tokens)
    chosen = reference[prefixes, samples.response_tokens]  # [B, R]
    logprobs = tabular_policy.evaluate(samples).logprobs
    mask, found = samples.response_mask, torch.zeros_like(table)
    reached = torch.zeros(13, dtype=torch.float64)
    probability = logprobs.detach().sum(1).exp()
    for i in range(len(samples)):
        one = slice(i, i + 1)
        inputs = made_up_policy_inputs(
            logprobs[one],
            logprobs[one].detach(),
            torch.zeros_like(logprobs[one]),
            mask[one],
            reference_logprobs=chosen[one],
        )
        total = GRPO(GRPOOptions(beta=1.0))(inputs).total * mask[i].sum()  # the sum over tokens
        (gradient,) = torch.autograd.grad(total, table, retain_graph=True)
        found += probability[i] * gradient
        reached.index_add_(0, prefixes[i, mask[i]], probability[i].expand(int(mask[i].sum())))
    wanted = reverse_kl_gradient(table, reference, reached)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def reverse_kl_gradient(table: Tensor, reference: Tensor, reached: Tensor) -> Tensor:
    """Of ``sum_s d(s) sum_a ref(a|s) log(ref(a|s) / pi(a|s))``, d held fixed."""
    kl = (reference.exp() * (reference - table.log_softmax(1))).sum(1)
    (found,) = torch.autograd.grad((reached * kl).sum(), table)
    return found

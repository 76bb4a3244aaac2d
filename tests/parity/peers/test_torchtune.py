"""torchtune 0.6.1: where it agrees with us in float64, and where and by how much it differs.

A difference is asserted with the size that its cause predicts, so that a test fails when either
side changes. Legend: B rows, R response.
"""

from __future__ import annotations

import pytest
import torch
from peer import SEEDS, close, draw, need, right_padded

need("torchtune", "0.6.1")

from rlhf_kit_policy_gradient.losses import ClippedValue, PPOClip  # noqa: E402
from rlhf_kit_policy_gradient.options import ClipOptions  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import Parameter  # noqa: E402
from torchtune import rlhf  # noqa: E402
from torchtune.rlhf.loss import PPOLoss  # noqa: E402

from rlhf_kit.engine.accumulate import AccumulatingStep, Term  # noqa: E402
from rlhf_kit.engine.optim import Optimizer, ParameterGroup  # noqa: E402
from rlhf_kit.ops.kl import kl_penalised_rewards  # noqa: E402
from rlhf_kit.ops.logprobs import token_logprobs  # noqa: E402
from rlhf_kit.ops.masking import masked_mean, masked_var, whiten  # noqa: E402
from rlhf_kit.ops.returns import gae  # noqa: E402
from rlhf_kit.ops.sequence import (  # noqa: E402
    last_index,
    position_ids,
    response_mask,
    with_place_after_end,
)
from rlhf_kit.testing import made_up_policy_inputs  # noqa: E402
from rlhf_kit.types import PolicyLossInputs, SampledUnits, ValueLossInputs  # noqa: E402

B, R, STOP = 8, 10, 3
CLIP = ClipOptions(clip_range=0.2)
# torchtune counts tokens in float32, whatever the values are.
COUNTED = 1e-7


def tokens(seed: int) -> Tensor:
    """[B, R] of five tokens: stops are frequent, and one row has none."""
    found = torch.randint(0, 5, (B, R), generator=torch.Generator().manual_seed(seed))
    found[0] = 1
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_response_mask(seed: int) -> None:
    padding, _ = rlhf.truncate_sequence_at_first_stop_token(tokens(seed), torch.tensor([STOP]))
    assert torch.equal(response_mask(tokens(seed), (STOP,)), ~padding)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs(seed: int, temperature: float) -> None:
    logits = 20 * draw(seed, B, R, 5)
    theirs = rlhf.logits_to_logprobs(logits, tokens(seed), temperature)
    ours = token_logprobs(logits.flatten(0, 1), tokens(seed).flatten(), temperature)
    close(ours.view(B, R), theirs)


def test_no_end_is_read_from_the_padding() -> None:
    """torchtune calls a response without padding unfinished, also one that ends in time.

    Two rows of full width, of which the second ends with the stop token in its last place.
    """
    responses = torch.tensor([[1, 1, 1], [1, 1, STOP], [1, STOP, 1]])
    padding, _ = rlhf.truncate_sequence_at_first_stop_token(responses.clone(), torch.tensor([STOP]))
    penalised = rlhf.get_reward_penalty_mask(padding, (~padding).sum(1), penalise_no_eos=True)
    assert penalised.tolist() == [True, True, False]
    finished = ((responses == STOP) & response_mask(responses, (STOP,))).any(1)
    assert finished.tolist() == [False, True, True]


@pytest.mark.parametrize("seed", SEEDS)
def test_rewards(seed: int) -> None:
    """The same, at the last token and after the end, wherever the index says the score goes.

    torchtune's callers must give padding the same log-probability twice; ours may hold garbage.
    """
    (logprobs, reference), mask = draw(seed, 2, B, R), right_padded(seed, B, R)
    scores = draw(50 + seed, B)
    policy, frozen = (torch.where(mask, x, 1.0) for x in (logprobs, reference))
    last = last_index(mask)
    after = last_index(with_place_after_end(mask))
    for index in (last, after):
        theirs, _, _ = rlhf.get_rewards_ppo(scores, policy, frozen, 0.1, index)
        close(kl_penalised_rewards(scores, logprobs, reference, mask, 0.1, index), theirs)
    theirs, _, _ = rlhf.get_rewards_ppo(scores, policy, frozen, 0.1, last)
    close(kl_penalised_rewards(scores, logprobs, reference, mask, 0.1), theirs)


def test_without_an_index_the_score_lands_in_the_padding() -> None:
    """torchtune's default is the last column, ours the last valid token of the row."""
    mask, scores = right_padded(0, B, R), draw(1, B)
    zeros = torch.zeros((B, R), dtype=torch.float64)
    theirs, _, _ = rlhf.get_rewards_ppo(scores, zeros, zeros, 0.1)
    ours = kl_penalised_rewards(scores, zeros, zeros, mask, 0.1)
    full = mask.all(1)
    assert 0 < full.sum() < B
    close(theirs[full], ours[full])
    assert (theirs[~full] * mask[~full]).abs().sum() == 0
    close(theirs[~full][:, -1], scores[~full])


def episode(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rewards and values [B, R] with the score after the end; the tokens and the valued places."""
    mask = right_padded(seed, B, R)
    places = with_place_after_end(mask)
    logprobs, reference, values = draw(seed, 3, B, R)
    scores = 2.0 + draw(50 + seed, B)
    rewards = kl_penalised_rewards(scores, logprobs, reference, mask, 0.1, last_index(places))
    return rewards, torch.where(places, values, 0.0), mask, places


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("discount", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.97, 0.0)])
def test_advantages_and_returns(seed: int, discount: float, lam: float) -> None:
    """Returns are exact; advantages are whitened with n - 1, and with their mean put back."""
    rewards, values, mask, places = episode(seed)
    theirs, their_returns = rlhf.estimate_advantages(values, rewards, discount, lam, mask)
    advantages, returns = gae(rewards, values, places, discount=discount, lam=lam)
    close(returns, their_returns)
    close(whiten(advantages, mask, shift_mean=False, unbiased=True), theirs, COUNTED)


@pytest.mark.parametrize("seed", SEEDS)
def test_their_whitening_puts_the_mean_back(seed: int) -> None:
    """`shift_mean` adds the mean where it is said to remove it, and advantages use its default.

    Every token's advantage is therefore too large by the mean that whitening should remove.
    """
    rewards, values, mask, places = episode(seed)
    theirs, _ = rlhf.estimate_advantages(values, rewards, 1.0, 0.95, mask)
    advantages, _ = gae(rewards, values, places, discount=1.0, lam=0.95)
    ours = whiten(advantages, mask, unbiased=True)
    mean = advantages[mask].mean()
    assert mean > 0.5
    assert ours[mask].mean().abs() < 1e-12
    close((theirs - ours)[mask], mean.expand(int(mask.sum())), COUNTED)
    for flag in (True, False):
        close(
            whiten(advantages, mask, shift_mean=flag, unbiased=True),
            torch.where(mask, rlhf.whiten(advantages, mask, shift_mean=not flag), 0.0),
            COUNTED,
        )


@pytest.mark.parametrize("seed", SEEDS)
def test_their_variance_is_the_unbiased_one(seed: int) -> None:
    """Larger by n / (n - 1) than our default, so whitened values are smaller by its root."""
    rewards, _, mask, _ = episode(seed)
    centred = rewards - masked_mean(rewards, mask)
    theirs = rlhf.masked_var(centred, mask)
    close(masked_var(rewards, mask, unbiased=True), theirs, COUNTED)
    count = mask.sum().double()
    close(theirs / masked_var(rewards, mask, unbiased=False), count / (count - 1), COUNTED)


@pytest.mark.parametrize("seed", SEEDS)
def test_their_gae_reads_the_padding(seed: int) -> None:
    """A reward g at place p, outside the response, moves theirs at t by (discount lam)^(p - t) g.

    torchtune relies on its recipe to clear the padding first; ours masks inside.
    """
    rewards, values, mask, places = episode(seed)
    garbage = torch.where(places, 0.0, draw(70 + seed, B, R))
    assert garbage.abs().sum() > 0
    _, clean = rlhf.estimate_advantages(values, rewards, 0.9, 0.8, mask)
    _, dirty = rlhf.estimate_advantages(values, rewards + garbage, 0.9, 0.8, mask)
    steps = torch.arange(R)[None, :] - torch.arange(R)[:, None]  # [t, p] -> p - t
    decay = torch.where(steps >= 0, torch.full((R, R), 0.72, dtype=torch.float64) ** steps, 0.0)
    close(dirty - clean, garbage @ decay.T)
    ours = gae(rewards, values, places, discount=0.9, lam=0.8)[1]
    assert torch.equal(gae(rewards + garbage, values, places, discount=0.9, lam=0.8)[1], ours)


def test_garbage_in_the_padding() -> None:
    """Their mean multiplies by the mask, and NaN times zero is NaN; ours never reads it."""
    x, mask = draw(0, B, R), right_padded(0, B, R)
    dirty = torch.where(mask, x, torch.nan)
    assert rlhf.masked_mean(dirty, mask).isnan()
    assert torch.equal(masked_mean(dirty, mask), masked_mean(x, mask))


def losses(seed: int) -> tuple[PolicyLossInputs, ValueLossInputs]:
    """Leaves that require gradients; ratios and values move far enough to be clipped."""
    mask = right_padded(seed, B, R)
    old, step, advantages, old_values, value_step, returns = draw(seed, 6, B, R)
    new = (old + 0.3 * step).requires_grad_()
    values = (old_values + 0.3 * value_step).requires_grad_()
    return (
        made_up_policy_inputs(new, old, advantages, mask),
        ValueLossInputs(values, old_values, returns, with_place_after_end(mask)),
    )


def their_losses(
    policy: PolicyLossInputs, value: ValueLossInputs, rows: slice
) -> tuple[Tensor, ...]:
    """With padding filled as torchtune's recipe fills it."""
    ones, zeros = (torch.full_like(policy.advantages, x) for x in (1.0, 0.0))
    return PPOLoss(epsilon=0.2, value_clip_range=0.2, value_coeff=0.1)(
        torch.where(policy.mask, policy.old_logprobs, ones)[rows],
        torch.where(policy.mask, policy.logprobs, ones)[rows],
        torch.where(policy.mask, policy.advantages, zeros)[rows],
        torch.where(value.mask, value.old_values, zeros)[rows],
        torch.where(value.mask, value.values, zeros)[rows],
        value.returns[rows],
        padding_masks=policy.mask[rows],
        value_padding_masks=value.mask[rows],
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_losses_of_a_whole_batch(seed: int) -> None:
    """Values, gradients and clipped share agree; the critic is valued one place after the end."""
    policy, value = losses(seed)
    loss, policy_loss, value_loss, _, clipped = their_losses(policy, value, slice(None))
    actor, critic = PPOClip(CLIP)(policy), ClippedValue(CLIP)(value)
    tokens, places = policy.mask.sum(), value.mask.sum()
    close(actor.total / tokens, policy_loss, COUNTED)
    close(critic.total / places, value_loss, COUNTED)
    close((actor.stats["clip_fraction"] / tokens).double(), clipped, COUNTED)
    leaves = (policy.logprobs, value.values)
    ours = torch.autograd.grad(actor.total / tokens + 0.1 * critic.total / places, leaves)
    for mine, theirs in zip(ours, torch.autograd.grad(loss, leaves), strict=True):
        close(mine, theirs, COUNTED)


def test_their_reported_ratio_counts_the_padding() -> None:
    """Padding has ratio 1 there and is averaged along, which brings their mean nearer to 1."""
    policy, value = losses(0)
    reported = their_losses(policy, value, slice(None))[3]
    true = (policy.logprobs - policy.old_logprobs).exp()[policy.mask].mean()
    share = policy.mask.double().mean()
    assert share < 0.9
    close(reported, (1 + share * (true - 1)).detach())


@pytest.mark.parametrize("seed", SEEDS)
def test_their_micro_batches_change_the_gradient(seed: int) -> None:
    """A mean of micro-batch means weighs a token by 1 / (M n_i), ours by 1 / N, whatever the split.

    M micro-batches, n_i tokens in the i-th, N in all: tokens of short responses weigh more there.
    """
    policy, value = losses(seed)
    micro = [slice(0, 1), slice(1, 2), slice(2, 5), slice(5, 8)]
    theirs = sum(their_losses(policy, value, rows)[0] / len(micro) for rows in micro)
    (their_gradient,) = torch.autograd.grad(theirs, policy.logprobs)

    def gradient(parts: list[slice]) -> Tensor:
        leaf = Parameter(policy.logprobs.detach().clone())
        batches = [
            made_up_policy_inputs(
                leaf[rows], policy.old_logprobs[rows], policy.advantages[rows], policy.mask[rows]
            )
            for rows in parts
        ]
        step = AccumulatingStep(Optimizer([ParameterGroup([leaf], 1.0)]))
        term = Term(PPOClip(CLIP), lambda b: SampledUnits(b.mask, b.old_logprobs, b.group))
        step.add({"policy": term}, lambda batch: {"policy": batch}, batches)
        assert leaf.grad is not None
        return leaf.grad

    ours = gradient(micro)
    close(ours, gradient([slice(None)]), COUNTED)
    weight = torch.zeros((B, 1), dtype=torch.float64)
    for rows in micro:
        weight[rows] = policy.mask.sum() / (len(micro) * policy.mask[rows].sum())
    assert weight.max() > 5  # the response of one token
    assert weight.min() < 0.9
    close(their_gradient, ours * weight, COUNTED)


def test_positions_under_left_padding() -> None:
    """Both count valid tokens only."""
    from torchtune.generation import get_position_ids_from_padding_mask

    mask = right_padded(0, B, R).flip(1)
    theirs = get_position_ids_from_padding_mask(mask)
    assert torch.equal(position_ids(mask)[mask], theirs[mask])

"""The score on the last token, or one place after it, by hand and through PPO's update."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rlhf_kit_policy_gradient.experience import Normalizers
from rlhf_kit_policy_gradient.gae import GAE
from rlhf_kit_policy_gradient.options import GAEOptions
from torch import Tensor
from toy_runs import metrics, one_stage, ppo_of, ppo_options, run

from rlhf_kit.ops.kl import kl_penalised_rewards
from rlhf_kit.ops.sequence import last_index, with_place_after_end
from rlhf_kit.testing import TabularPolicy, oracles
from rlhf_kit.types import Advantages, PPOBatch, Rollout, Samples

T, F = True, False


def test_places() -> None:
    """Room after the end: one more. A full row, and one without tokens, stay as they are."""
    mask = torch.tensor([[T, T, F, F], [T, T, T, F], [T, T, T, T], [F, F, F, F]])
    wanted = [[T, T, T, F], [T, T, T, T], [T, T, T, T], [F, F, F, F]]
    assert with_place_after_end(mask).tolist() == wanted
    assert mask[0].tolist() == [T, T, F, F]
    assert last_index(with_place_after_end(mask)).tolist() == [2, 3, 3, 0]


def test_the_score_may_stand_where_no_token_is() -> None:
    """The penalty is of tokens only: the place after the end has none, whatever stands there."""
    logprobs = torch.tensor([[-1.0, -2.0, 7.0], [-1.0, -1.0, -1.0], [9.0, 9.0, 9.0]])
    reference = torch.tensor([[-1.5, -1.0, -7.0], [-1.0, -1.0, -2.0], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[T, T, F], [T, T, T], [F, F, F]])
    scores = torch.tensor([2.0, 3.0, 5.0])
    index = last_index(with_place_after_end(mask))
    found = kl_penalised_rewards(scores, logprobs, reference, mask, 0.1, index)
    torch.testing.assert_close(
        found, torch.tensor([[-0.05, 0.1, 2.0], [0.0, 0.0, 2.9], [0.0, 0.0, 0.0]])
    )


# Two responses of three columns: "a." with room for one more place, and "bab" without.
TOKENS = torch.tensor([[0, 2, 2], [1, 0, 1]])
VALUES = torch.tensor([[1.0, 2.0, 4.0], [0.5, 1.0, 1.5]])
SCORES = torch.tensor([8.0, 3.0])
ADVANTAGES_AFTER = [
    # Deltas 0 + 2 - 1, 0 + 4 - 2, 8 - 4; with lambda 1/2: 4, 2 + 2, 1 + 2.
    [3.0, 4.0, 4.0],
    # Deltas 0 + 1 - 0.5, 0 + 1.5 - 1, 3 - 1.5; then 1.5, 0.5 + 0.75, 0.5 + 0.625.
    [1.125, 1.25, 1.5],
]
ADVANTAGES_LAST = [[1.0 + 3.0, 6.0, 0.0], ADVANTAGES_AFTER[1]]  # 8 - 2 on the last token


def rollout(values: Tensor = VALUES) -> Rollout:
    """The policy is its own reference: there is no penalty."""
    policy = TabularPolicy(scale=0.0)
    samples = policy.all_samples()
    index = [samples.response_tokens.tolist().index(row) for row in ([0, 2, 2], [1, 0, 1])]
    samples = samples.select(torch.tensor(index))
    assert samples.response_mask.tolist() == [[T, T, F], [T, T, T]]
    logprobs = policy.evaluate(samples).logprobs.detach()
    return Rollout(samples, logprobs, logprobs, values, SCORES)


def algorithm(score_at: str, micro_batch: int = 4, **others: Any) -> Any:
    options = ppo_options(end={"score_at": score_at}, micro_batch=micro_batch, critic={"coef": 1.0})
    advantage = GAE(GAEOptions(lam=0.5))
    return ppo_of(TabularPolicy(scale=0.0), options, advantage=advantage, **others)


@pytest.mark.parametrize(
    ("score_at", "wanted"), [("after_end", ADVANTAGES_AFTER), ("last_token", ADVANTAGES_LAST)]
)
def test_advantages_by_hand(score_at: str, wanted: list[list[float]]) -> None:
    ppo, seen = algorithm(score_at), rollout()
    found = ppo.credit(ppo.experience(seen))
    mask = seen.mask if score_at == "last_token" else torch.ones((2, 3), dtype=torch.bool)
    expected = torch.tensor(wanted)
    torch.testing.assert_close(found.advantages, expected)
    torch.testing.assert_close(found.returns, torch.where(mask, expected + VALUES, 0.0))
    rewards = [[0.0, 0.0, 8.0], [0.0, 0.0, 3.0]]
    if score_at == "last_token":
        rewards[0] = [0.0, 8.0, 0.0]
    lists = oracles.gae(rewards, VALUES.tolist(), mask.tolist(), 1.0, 0.5)
    assert (found.advantages.tolist(), found.returns.tolist()) == lists
    batch = ppo.batch(seen, found)
    assert torch.equal(batch.places, mask)
    assert torch.equal(batch.mask, seen.mask)


def test_a_normalizer_of_advantages_sees_tokens_only() -> None:
    """The place after the end chooses nothing: its advantage is no part of mean or variance."""
    masks = []

    def watch(x: Tensor, mask: Tensor) -> Tensor:
        masks.append(mask.clone())
        return torch.where(mask, x, 0.0)

    ppo = algorithm("after_end", normalizers=Normalizers(rewards=watch, advantages=watch))
    seen = rollout()
    found = ppo.credit(ppo.experience(seen))
    rewards, advantages = masks
    assert rewards.all()  # the score is a reward like others
    assert torch.equal(advantages, seen.mask)
    assert found.advantages[0, 2] == 0.0
    assert found.returns[0, 2] == 8.0


@dataclass
class Critic:
    """One number per place, for every row alike; the states do not matter."""

    table: torch.nn.Parameter

    def __call__(self, states: Tensor, samples: Samples) -> Tensor:
        return self.table[: states.shape[1]].expand(len(samples), -1)

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        yield self.table


def updated(score_at: str, micro_batch: int) -> tuple[dict[str, float], list[float]]:
    """Statistics and the critic's gradient of one update with advantages 1 and returns 10."""
    table = torch.nn.Parameter(torch.tensor([1.0, 2.0, 4.0]))
    ppo = algorithm(score_at, micro_batch, value=Critic(table))
    seen = rollout(table.detach().expand(2, 3).clone())
    targets = Advantages(torch.ones((2, 3)), torch.full((2, 3), 10.0))
    stats = ppo.learn(ppo.batch(seen, targets))
    return stats, ppo.parts.optimizer.gradients[-1].tolist()


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_the_critic_counts_the_place_after_the_end_and_the_policy_does_not(
    micro_batch: int,
) -> None:
    """Six places have a value, five tokens were chosen; in one micro-batch or in two."""
    after, gradient = updated("after_end", micro_batch)
    last, other = updated("last_token", micro_batch)
    # Errors 9, 8, 6 in both rows, or without the last one of the first row.
    assert after["value/loss"] == pytest.approx(0.5 * (81 + 64 + 36) * 2 / 6)
    assert last["value/loss"] == pytest.approx(0.5 * ((81 + 64) * 2 + 36) / 5)
    assert gradient == pytest.approx([-9 * 2 / 6, -8 * 2 / 6, -6 * 2 / 6])
    assert other == pytest.approx([-9 * 2 / 5, -8 * 2 / 5, -6 / 5])
    assert after["value/value"] == pytest.approx(14 / 6)
    # A mean over five tokens of advantage 1 and ratio 1: with six it would be 5/6.
    for stats in (after, last):
        assert stats["policy/loss"] == pytest.approx(-1.0)
        assert stats["policy/ratio"] == pytest.approx(1.0)


def test_places_follow_their_rows() -> None:
    seen = rollout()
    ppo = algorithm("after_end")
    batch: PPOBatch = ppo.batch(seen, ppo.credit(ppo.experience(seen)))
    swapped = batch.select(torch.tensor([1, 0]))
    assert torch.equal(swapped.places, batch.places[[1, 0]])
    parts = list(batch.split(1))
    assert [part.valued.mask.sum().item() for part in parts] == [3, 3]
    assert [part.mask.sum().item() for part in parts] == [2, 3]


def test_where_no_row_has_room_both_are_the_same(toy_model: Path, tmp_path: Path) -> None:
    """One new token: every response is as long as the rollout is wide. With twelve they differ."""
    for tokens in (1, 12):
        found = []
        for place in ("last_token", "after_end"):
            recipe = one_stage(
                tmp_path / f"{place}{tokens}",
                toy_model,
                end={"score_at": place},
                sampling={"max_new_tokens": tokens, "batch_size": 16},
            )
            run(recipe, tmp_path / f"run-{place}{tokens}", "seed=4")  # where one ends in time
            found.append(metrics(tmp_path / f"run-{place}{tokens}"))
        if tokens == 1:
            assert found[0] == found[1]
        else:
            assert found[0][0]["response_length"] < tokens  # a row with room
            assert found[0][0]["value/loss"] != found[1][0]["value/loss"]
            assert found[0][0]["score"] == found[1][0]["score"]

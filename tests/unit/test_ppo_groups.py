"""Several responses per prompt in a rollout, and PPO without a critic, on a toy policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from rlhf_kit_policy_gradient.plugin import rlhf_components
from torch import Tensor
from toy_runs import ppo_of

from rlhf_kit.components import Part
from rlhf_kit.engine.optim import Optimizer, ParameterGroup
from rlhf_kit.engine.seeding import derive_seed
from rlhf_kit.stagekit.prompts import PromptSet
from rlhf_kit.stagekit.streams import PromptStream
from rlhf_kit.testing import TabularPolicy, TabularSampler, hollow_part
from rlhf_kit.types import Advantages, Experience, Rollout, Samples


class Tokenizer:
    """A prompt is its own number."""

    eos_id, end_ids, begin_ids, separator_id, pad_id, max_length = 2, (2,), (), 2, 2, 64

    def prompt(self, row: Mapping[str, Any]) -> list[int]:
        return [int(row["prompt"]) % 2]


ROWS = [{"prompt": str(i)} for i in range(6)]
TOKENIZER: Any = Tokenizer()
PROMPTS = PromptSet.of(ROWS, TOKENIZER)


def ppo(**changes: Any) -> Part:
    """The stage's part, its slots filled with nothing in particular."""
    (component,) = [c for c in rlhf_components() if c.name == "ppo_ptx"]
    return hollow_part(component, **changes)


def test_each_prompt_is_repeated_in_a_group_of_its_own() -> None:
    stream = PromptStream(PROMPTS, 6, torch.Generator().manual_seed(0), repeat=3)
    seen = []
    for _ in range(3):
        prompts = stream.next()
        assert len(prompts) == 6
        assert prompts.group.tolist() == [0, 0, 0, 1, 1, 1]
        names = [row["prompt"] for row in prompts.rows]
        assert names == [names[0]] * 3 + [names[3]] * 3
        seen += [names[0], names[3]]
    assert sorted(seen) == sorted(row["prompt"] for row in ROWS)  # one pass over the data


def test_a_single_response_is_a_group_of_one() -> None:
    stream = PromptStream(PROMPTS, 4, torch.Generator().manual_seed(0))
    assert stream.next().group.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rollout_batch": 64, "samples_per_prompt": 4}, {}),
        (
            {"rollout_batch": 65, "samples_per_prompt": 4},
            {"rollout_batch": "65 responses cannot be divided by samples_per_prompt 4"},
        ),
        (
            {"rollout_batch": 32},
            {"minibatch": "64 is larger than rollout_batch 32"},
        ),
    ],
)
def test_what_does_not_divide_is_refused(changes: dict[str, int], says: dict[str, str]) -> None:
    assert ppo(**changes).options.problems() == says


def test_no_responses_per_prompt_are_refused() -> None:
    with pytest.raises(ValueError, match="samples_per_prompt"):
        ppo(samples_per_prompt=0)


class LeaveOneOut:
    def __call__(self, experience: Experience) -> Advantages:
        assert experience.values is None
        rewards, mask, group = experience.rewards, experience.places, experience.group
        total = torch.where(mask, rewards, 0.0).sum(1)
        same = (group[:, None] == group[None, :]).float()
        baseline = (same @ total - total) / (same.sum(1) - 1)
        advantages = torch.where(mask, (total - baseline)[:, None], 0.0)
        return Advantages(advantages, torch.zeros_like(advantages))


class Run:
    """A StageRun that only counts, and keeps what it is shown."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.metrics: list[Mapping[str, float]] = []
        self.rollouts: list[Rollout] = []

    def key(self, *names: Any) -> int:
        return derive_seed(0, *map(str, names))

    def steps(self, total: int, state: Any, unit: str = "step") -> Iterator[int]:
        return iter(range(total))

    def end_step(self, step: int, metrics: Mapping[str, float], line: str | None = None) -> None:
        self.metrics.append(metrics)

    def rollout_collected(self, step: int, rollout: Rollout) -> None:
        self.rollouts.append(rollout)


def test_ppo_without_a_critic_learns() -> None:
    policy, run = TabularPolicy(scale=0.1), Run()
    chosen: Any = ppo(
        kl={"coef": 0.05},
        steps=30,
        rollout_batch=32,
        minibatch=16,
        micro_batch=5,
        samples_per_prompt=4,
        sampling={"max_new_tokens": 3},
    ).options

    def reward(samples: Samples) -> Tensor:
        return torch.tensor([float(text.count("b")) for text in samples.responses])

    algorithm = ppo_of(
        policy,
        chosen,
        reference=policy.reference(),
        sampler=TabularSampler(),
        critic=None,
        reward=reward,
        advantage=LeaveOneOut(),
        optimizer=Optimizer([ParameterGroup(list(policy.parameters()), 0.05)]),
        prompts=PromptStream(PROMPTS, 32, run.generator, chosen.samples_per_prompt),
    )
    algorithm.run(run)  # type: ignore[arg-type]
    assert all(r.values is None for r in run.rollouts)
    assert torch.bincount(run.rollouts[0].group).tolist() == [4] * 8
    # At the first minibatch the policy is the one that sampled, and the reference.
    assert run.metrics[0]["kl"] == 0.0
    assert "value/loss" not in run.metrics[0]
    assert sum(m["score"] for m in run.metrics[:3]) / 3 < 1.2
    assert sum(m["score"] for m in run.metrics[-3:]) / 3 > 2.0

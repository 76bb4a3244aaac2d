"""The kit must fail on implementations with the field's usual mistakes, and say which one."""

from __future__ import annotations

import importlib.metadata
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_kit import Component, Options
from rlhf_kit.testing import (
    check_advantage,
    check_component,
    check_kl_controller,
    check_labeler,
    check_nll_loss,
    check_plugin,
    check_policy_loss,
    check_preference_loss,
    check_reward,
    check_value_loss,
    made_up_samples,
)
from rlhf_kit.types import Advantages, Experience, LossOutput

pytest_plugins = ["pytester"]


class BrokenLoss:
    """A loss from two functions."""

    def __init__(self, total: Callable[[Any], Tensor], count: Callable[[Any], Tensor]) -> None:
        self.total, self.count = total, count

    def __call__(self, inputs: Any) -> LossOutput:
        found = self.total(inputs)
        return found if isinstance(found, LossOutput) else LossOutput(found)


def tokens(units: Any) -> Tensor:
    return units.mask.sum()


def reinforce(inputs: Any) -> Tensor:
    """A right one to break: -A log pi, masked, summed."""
    advantages = torch.where(inputs.mask, inputs.advantages, 0.0)
    return -(advantages * torch.where(inputs.mask, inputs.logprobs, 0.0)).sum()


def masked_late(inputs: Any) -> Tensor:
    return torch.where(inputs.mask, -inputs.advantages * inputs.logprobs, 0.0).sum()


def unmasked_exp(inputs: Any) -> Tensor:
    ratio = (inputs.logprobs - inputs.old_logprobs).exp()
    return torch.where(inputs.mask, -inputs.advantages * ratio, 0.0).sum()


def row_means(inputs: Any) -> Tensor:
    advantages = torch.where(inputs.mask, inputs.advantages, 0.0)
    per_token = advantages * torch.where(inputs.mask, inputs.logprobs, 0.0)
    return -(per_token.sum(1) / inputs.mask.sum(1)).sum()


def wrong_sign(inputs: Any) -> Tensor:
    return -reinforce(inputs)


def in_place(inputs: Any) -> Tensor:
    inputs.advantages.mul_(inputs.mask)
    return reinforce(inputs)


def mean_statistic(inputs: Any) -> LossOutput:
    return LossOutput(reinforce(inputs), {"advantage": inputs.advantages[inputs.mask].mean()})


def rows_in_batch(inputs: Any) -> Tensor:
    logprobs = torch.where(inputs.mask, inputs.logprobs, 0.0).sum(1)
    return -(logprobs * torch.arange(1, len(inputs.mask) + 1)).sum()


def test_the_right_one_passes() -> None:
    check_policy_loss(BrokenLoss(reinforce, tokens))


@pytest.mark.parametrize(
    ("total", "count", "says"),
    [
        (lambda i: reinforce(i) / i.mask.sum(), tokens, "sums over what count counts, never means"),
        (lambda i: -(i.advantages * i.logprobs).sum(), tokens, "gradient flows into padding"),
        (unmasked_exp, tokens, "1000000000.0 in the padding"),
        (masked_late, tokens, "0 \\* NaN is NaN, also in the gradient"),
        (row_means, tokens, "a row without valid places"),
        (rows_in_batch, tokens, "another order of the rows changed total"),
        (wrong_sign, tokens, "check the sign"),
        (in_place, tokens, "wrote into inputs.advantages"),
        (mean_statistic, tokens, "changed statistic 'advantage'"),
        (lambda i: reinforce(i).detach(), tokens, "no gradient reaches logprobs"),
        (lambda i: reinforce(i).double(), tokens, "it should stay float32"),
        (lambda i: torch.where(i.mask, i.logprobs, 0.0), tokens, "total of shape \\[\\]"),
        (reinforce, lambda u: (u.logprobs < 0).sum(), "SampledUnits, which has what is known"),
        (reinforce, lambda u: torch.tensor(u.mask.numel()), "changed count"),
        (reinforce, lambda u: int(u.mask.sum()), "should return a tensor of shape \\[\\]"),
    ],
)
def test_policy_losses(total: Any, count: Any, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        check_policy_loss(BrokenLoss(total, count))


def test_value_loss_over_padding() -> None:
    broken = BrokenLoss(lambda i: (i.values - i.returns).square().sum(), tokens)
    with pytest.raises(AssertionError, match="padding"):
        check_value_loss(broken)


def test_nll_loss_that_counts_what_it_does_not_get() -> None:
    broken = BrokenLoss(
        lambda i: -torch.where(i.mask, i.logprobs, 0.0).sum(), lambda u: u.predicted.sum()
    )
    with pytest.raises(AssertionError, match="before the forward pass with Masked"):
        check_nll_loss(broken)


def pairs(inputs: Any) -> tuple[Tensor, Tensor]:
    mask = inputs.mask[:, :, None] & inputs.mask[:, None, :]
    mask = mask & (inputs.ranks[:, :, None] < inputs.ranks[:, None, :])
    scores = torch.where(inputs.mask, inputs.scores, 0.0)
    return mask, scores[:, :, None] - scores[:, None, :]


def prompts(units: Any) -> Tensor:
    mask = units.mask[:, :, None] & units.mask[:, None, :]
    return (mask & (units.ranks[:, :, None] < units.ranks[:, None, :])).any(1).any(1).sum()


def log_sigmoid_naive(inputs: Any) -> Tensor:
    mask, margin = pairs(inputs)
    return -torch.where(mask, torch.where(mask, margin, 0.0).sigmoid().log(), 0.0).sum()


def all_pairs_of_the_batch(inputs: Any) -> Tensor:
    mask, margin = pairs(inputs)
    return -torch.where(mask, logsigmoid(margin), 0.0).sum() / mask.sum()


def reversed_ranks(inputs: Any) -> Tensor:
    mask, margin = pairs(inputs)
    return -torch.where(mask, logsigmoid(-margin), 0.0).sum()


def unranked_is_best(inputs: Any) -> Tensor:
    mask, margin = pairs(inputs)
    return -torch.where(mask, logsigmoid(margin), 0.0).sum()


def first_is_best(inputs: Any) -> Tensor:
    mask = inputs.mask[:, 1:] & inputs.mask[:, :1]
    scores = torch.where(inputs.mask, inputs.scores, 0.0)
    return -torch.where(mask, logsigmoid(scores[:, :1] - scores[:, 1:]), 0.0).sum()


@pytest.mark.parametrize(
    ("total", "says"),
    [
        (log_sigmoid_naive, "use torch.nn.functional.logsigmoid"),
        (all_pairs_of_the_batch, "micro-batches"),
        (reversed_ranks, "rank 0 is the best"),
        (unranked_is_best, "a completion without a rank"),
        (first_is_best, "another order of a prompt's completions"),
    ],
)
def test_preference_losses(total: Any, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        check_preference_loss(BrokenLoss(total, prompts))


class BrokenGAE:
    """GAE with lambda 1 whose mistakes can be chosen."""

    def __init__(self, *mistakes: str) -> None:
        self.mistakes = mistakes

    def __call__(self, experience: Experience) -> Advantages:
        rewards, values, mask = experience.rewards, experience.values, experience.places
        assert values is not None
        if "unmasked delta" not in self.mistakes:
            rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
        else:
            rewards, values = rewards.nan_to_num(), values.nan_to_num()
        if "in place" in self.mistakes:
            experience.group.add_(1)
        if "no values" in self.mistakes:
            values = torch.zeros_like(values)
        following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
        advantages = (rewards + following - values).flip(1).cumsum(1).flip(1)
        if "neighbours" in self.mistakes:
            sums = advantages[:, 0].view(-1, 3).mean(1).repeat_interleave(3)
            advantages = advantages - sums[:, None]
        if "batch width" in self.mistakes:
            advantages = advantages - advantages.mean()
        if "unmasked KL" in self.mistakes:
            kl = experience.logprobs - experience.reference_logprobs
            advantages = advantages - kl.nan_to_num()
        if "dirty output" not in self.mistakes:
            advantages = torch.where(mask, advantages, 0.0)
        else:
            advantages = torch.where(mask, advantages, 1.0)
        returns = torch.where(mask, advantages + values, 0.0)
        if "double" in self.mistakes:
            advantages = advantages.double()
        return Advantages(advantages, returns)


def test_the_right_gae_passes() -> None:
    check_advantage(BrokenGAE(), needs={"values"})


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        ("unmasked delta", "in the padding of rewards, values and log-probabilities"),
        ("neighbours", "go by group"),
        ("batch width", "three more columns of padding"),
        ("in place", "wrote into experience.group"),
        ("dirty output", "should be 0 where experience.places is False"),
        ("unmasked KL", "in the padding of rewards, values and log-probabilities"),
        ("double", "advantages should be float32, got torch.float64"),
        ("no values", "other values give the same advantages"),
    ],
)
def test_advantages(mistake: str, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        check_advantage(BrokenGAE(mistake), needs={"values"})


def test_an_estimator_that_reads_what_it_does_not_declare() -> None:
    with pytest.raises(AssertionError, match="BrokenGAE raised AssertionError"):
        check_advantage(BrokenGAE())


def test_advantage_with_an_unmasked_carry() -> None:
    """The carry of a recursion that never looks at the mask takes what stands in the padding."""

    def unmasked(experience: Experience) -> Advantages:
        rewards, mask = experience.rewards, experience.places
        carry, columns = torch.zeros(len(mask)), []
        for t in reversed(range(mask.shape[1])):
            carry = rewards[:, t].nan_to_num() + 0.95 * carry
            columns.insert(0, torch.where(mask[:, t], carry, 0.0))
        advantages = torch.stack(columns, 1)
        return Advantages(advantages, advantages)

    with pytest.raises(AssertionError, match="mask the reward, the next value and what is carried"):
        check_advantage(unmasked)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda s: torch.full((len(s),), float("nan")), "score nan for response 'Thank you"),
        (lambda s: torch.tensor([1 / len(t) if t else torch.inf for t in s.responses]), "inf"),
        (lambda s: torch.zeros(len(s), 1), "shape \\[6\\], got shape \\[6, 1\\]"),
        (lambda s: [0.0] * len(s), "should be a torch.Tensor, got list"),
        (lambda s: s.response_mask.sum(1), "should be float32, got torch.int64"),
        (lambda s: s.response_tokens.float().mean(1), "other tokens in the padding"),
        (lambda s: torch.full((len(s),), 1.0 * s.response_tokens.shape[1]), "more padding"),
        (lambda s: torch.arange(len(s)).float(), "another order of the rows"),
        (
            lambda s: (lambda x: x - x.mean())(s.response_mask.sum(1).float()),
            "depend on its own row only",
        ),
        (lambda s: torch.tensor([random.random() for _ in s.responses]), "a second call"),
    ],
)
def test_rewards(function: Any, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        check_reward(function)


def test_a_reward_that_compares_rows_may_say_so() -> None:
    def centred(samples: Any) -> Tensor:
        lengths = samples.response_mask.sum(1).float()
        return lengths - lengths.mean()

    check_reward(centred, rowwise=False)


def test_a_composite_whose_parts_disagree() -> None:
    class Composite:
        def components(self, samples: Any) -> dict[str, Tensor]:
            return {"length": torch.tensor([float(len(text)) for text in samples.responses])}

        def combine(self, components: Any) -> Tensor:
            return 2 * components["length"]

        def __call__(self, samples: Any) -> Tensor:
            return self.components(samples)["length"]

    with pytest.raises(AssertionError, match="should be what a call returns"):
        check_reward(Composite())


@pytest.mark.parametrize(
    ("rank", "says"),
    [
        (lambda lengths: [len(lengths)] * len(lengths), "should begin at 0"),
        (lambda lengths: [sorted(lengths).index(x) for x in lengths], "lower score is ahead"),
        (lambda lengths: [0.0] * len(lengths), "one int rank per response"),
    ],
)
def test_labelers(rank: Any, says: str) -> None:
    def labeler(samples: Any) -> tuple[list[int], list[float]]:
        lengths = [float(len(text)) for text in samples.responses]
        return rank(lengths), lengths

    samples = made_up_samples(["a", "bb", "cccc"], samples_per_prompt=3)
    with pytest.raises(AssertionError, match=says):
        check_labeler(labeler, samples)


class BrokenKL:
    """An integral controller whose mistakes can be chosen."""

    def __init__(self, mistake: str = "") -> None:
        self.error, self.mistake = 0.0, mistake

    def __call__(self, coefficient: float, kl: float, samples: int) -> float:
        self.error += (kl - 6.0) * 1e-4
        sign = -1 if self.mistake == "sign" else 1
        coefficient += sign * self.error
        return coefficient if self.mistake == "negative" else max(coefficient, 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.mistake == "forgets" else {"error": self.error}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.error = state.get("error", self.error)


class SecretKL:
    """Remembers, and has no state to save."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, coefficient: float, kl: float, samples: int) -> float:
        self.seen += 1
        return coefficient + kl * self.seen


def test_kl_controllers() -> None:
    check_kl_controller(BrokenKL())
    for mistake, says in (
        ("sign", "a large KL should not give a smaller coefficient"),
        ("negative", "it should be a float >= 0"),
        ("forgets", "put all that it remembers into state_dict"),
    ):
        with pytest.raises(AssertionError, match=says):
            check_kl_controller(BrokenKL(mistake))
    with pytest.raises(AssertionError, match="put all that it remembers into state_dict"):
        check_kl_controller(SecretKL())


DECLARATIONS = """
from pydantic import Field
from rlhf_kit import Component, Options, hookimpl

class Fine(Options):
    rate: float = Field(0.1, gt=0, description="a rate")

class BadDefault(Options):
    rate: float = Field(0.0, gt=0, description="a rate")

class NoDescription(Options):
    rate: float = 0.1

class Right:
    def __init__(self, options, context): pass

class NeedsMore:
    def __init__(self, options, tokenizer): pass

@hookimpl
def rlhf_components():
    return [Component("reward", "right", "declared:Right", Fine, "A reward.")]
"""


def test_components(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "declared.py").write_text(DECLARATIONS)
    (tmp_path / "heavy_declared.py").write_text("import torch\n" + DECLARATIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    import declared
    import heavy_declared

    assert [c.name for c in check_plugin("declared")] == ["right"]

    def component(target: str, options: type[Options], summary: str = "One.") -> Component:
        return Component("reward", "mine", target, options, summary)

    check_component(component("declared:Right", declared.Fine))
    for broken, says in (
        (component("declared:Right", declared.Fine, " "), "has no summary"),
        (component("declared:Wrong", declared.Fine), "cannot import declared:Wrong"),
        (component("nowhere:Right", declared.Fine), "No module named 'nowhere'"),
        (component("declared:NeedsMore", declared.Fine), "missing a required argument: 'tokenizer"),
        (component("declared:Right", declared.BadDefault), "a default is not valid"),
        (component("declared:Right", declared.NoDescription), "'rate' has no description"),
        (component("declared:Right", heavy_declared.Fine), "also imports torch; keep options in"),
    ):
        with pytest.raises(AssertionError, match=says):
            check_component(broken)
    with pytest.raises(AssertionError, match="listing its components also imports torch"):
        check_plugin("heavy_declared")


FIXTURES = """
import sys
import torch

def test_fixtures(check_reward, check_policy_loss, check_advantage, made_up_samples):
    samples = made_up_samples(["yes", "no"])
    check_reward(lambda s: torch.tensor([float(len(t)) for t in s.responses]), samples)

def test_policy(tabular_policy):
    probabilities = tabular_policy.evaluate(tabular_policy.all_samples()).logprobs.sum(1).exp()
    assert abs(probabilities.sum().item() - 1) < 1e-12
"""


def test_fixtures_come_with_the_package(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(FIXTURES)
    installed = importlib.metadata.entry_points(group="pytest11", name="rlhf_kit")
    load = [] if installed else ["-p", "rlhf_kit.testing.pytest_plugin"]
    pytester.runpytest_inprocess(*load, "-p", "no:cacheprovider").assert_outcomes(passed=2)


def test_the_pytest_plugin_is_cheap() -> None:
    code = (
        "import sys, rlhf_kit.testing.pytest_plugin, rlhf_kit.testing.components; "
        "print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"

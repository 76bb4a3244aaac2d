"""Gradient accumulation: micro-batches change nothing, terms add up, NaN stops before the step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from rlhf_kit.engine.accumulate import Term, accumulating
from rlhf_kit.engine.optim import Optimizer, ParameterGroup
from rlhf_kit.errors import NumericsError
from rlhf_kit.testing import TabularPolicy, TabularSampler
from rlhf_kit.types import LossOutput, Masked, Prompts, Samples, Sampling, TextBatch


class Recorder(Optimizer):
    """Keeps the gradient of each step."""

    def step(self) -> float:
        self.gradient = torch.cat([p.grad.flatten().clone() for p in self._model])
        return super().step()


class NLL:
    """Sum of -log p with a weight per row, and the number of tokens."""

    def count(self, units: Masked) -> Tensor:
        return units.mask.sum()

    def __call__(self, inputs: tuple[Tensor, Tensor]) -> LossOutput:
        logprobs, mask = inputs
        total = -torch.where(mask, logprobs, 0.0).sum()
        return LossOutput(total, {"tokens": mask.sum().float()})


def responses(samples: Samples) -> Masked:
    return Masked(samples.mask)


def predictions(texts: TextBatch) -> Masked:
    return texts.targets


class Poison(NLL):
    """Not finite on micro-batches that hold a full-length response."""

    def __call__(self, inputs: tuple[Tensor, Tensor]) -> LossOutput:
        bad = bool(inputs[1].all(1).any())
        return LossOutput(super().__call__(inputs).total * (float("nan") if bad else 1.0))


def sampled(policy: TabularPolicy, rows: int = 10) -> Samples:
    one = torch.zeros((rows, 1), dtype=torch.long)
    order = torch.arange(rows)
    prompts = Prompts(one, one.bool(), [{"prompt": ""}] * rows, order, order)
    return TabularSampler()(policy, prompts, Sampling(3, 1.0, key=3))


def texts() -> TextBatch:
    tokens = torch.tensor([[0, 1, 0], [1, 1, 2], [0, 0, 1], [1, 0, 2]])
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[2, 2] = False
    return TextBatch(tokens, mask, mask)


def recorder(policy: TabularPolicy) -> Recorder:
    group = ParameterGroup(list(policy.parameters()), 0.1)
    return Recorder([group], max_gradient_norm=None)


def gradient_of(
    samples: Samples, size: int, *, policy_weight: float = 1.0, gamma: float = 0.0
) -> tuple[Tensor, dict[str, float]]:
    """The gradient of one step over ``samples`` in micro-batches of ``size``, and ptx texts."""
    policy = TabularPolicy()
    optimizer = recorder(policy)

    def forward(micro: Samples) -> dict[str, Any]:
        return {"ppo": (policy.evaluate(micro).logprobs, micro.mask)}

    def language_model(micro: TextBatch) -> dict[str, Any]:
        return {"ptx": (policy.next_token_logprobs(micro), micro.predicted)}

    with accumulating(optimizer) as step:
        if policy_weight:
            step.add(
                {"ppo": Term(NLL(), responses, policy_weight)}, forward, list(samples.split(size))
            )
        if gamma:
            step.add(
                {"ptx": Term(NLL(), predictions, gamma)}, language_model, list(texts().split(size))
            )
    return optimizer.gradient, step.stats


@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_change_no_gradient_and_no_figure(size: int) -> None:
    samples = sampled(TabularPolicy())
    assert len(set(samples.mask.sum(1).tolist())) > 1  # lengths differ, or means of means would do
    whole, figures = gradient_of(samples, 10)
    found, split_figures = gradient_of(samples, size)
    assert ((found - whole).norm() / whole.norm()).item() < 1e-6
    assert split_figures == pytest.approx(figures, rel=1e-6)
    assert figures["ppo/tokens"] == 1.0


def test_the_gradient_is_that_of_the_token_mean() -> None:
    policy = TabularPolicy()
    samples = sampled(policy)
    found, figures = gradient_of(samples, 4)
    mean = -policy.evaluate(samples).logprobs.sum() / samples.mask.sum()
    (wanted,) = torch.autograd.grad(mean, policy.table)
    torch.testing.assert_close(found, wanted.flatten(), rtol=1e-6, atol=1e-7)
    assert figures["ppo/loss"] == pytest.approx(mean.item(), rel=1e-6)
    assert figures["gradient_norm"] == pytest.approx(wanted.norm().item(), rel=1e-6)


@pytest.mark.parametrize("size", [1, 3, 10])
def test_two_terms_add_up(size: int) -> None:
    """g_total = g_ppo + gamma g_ptx, arXiv:2203.02155, equation 2."""
    samples = sampled(TabularPolicy())
    ppo, _ = gradient_of(samples, 10)
    ptx, _ = gradient_of(samples, 10, policy_weight=0.0, gamma=1.0)
    both, figures = gradient_of(samples, size, gamma=27.8)
    torch.testing.assert_close(both, ppo + 27.8 * ptx, rtol=1e-6, atol=1e-6)
    assert {"ppo/loss", "ptx/loss", "gradient_norm"} <= figures.keys()


@pytest.mark.parametrize("size", [1, 10])
def test_a_loss_that_is_not_finite_stops_before_the_step(size: int) -> None:
    policy = TabularPolicy()
    optimizer, samples = recorder(policy), sampled(policy)
    before = policy.state_dict()["table"]
    saved = optimizer.state_dict()
    with (
        pytest.raises(NumericsError, match="loss 'ppo' is nan: the step was not taken"),
        accumulating(optimizer) as step,
    ):
        step.add(
            {"ppo": Term(Poison(), responses)},
            lambda micro: {"ppo": (policy.evaluate(micro).logprobs, micro.mask)},
            list(samples.split(size)),
        )
    assert torch.equal(policy.table, before)
    assert optimizer.state_dict()["step"] == saved["step"] == 0
    # What earlier micro-batches left behind does not reach the next step.
    with accumulating(optimizer) as step:
        step.add(
            {"ppo": Term(NLL(), responses)},
            lambda micro: {"ppo": (policy.evaluate(micro).logprobs, micro.mask)},
            [samples],
        )
    torch.testing.assert_close(optimizer.gradient, gradient_of(samples, 10)[0])


def test_a_gradient_that_is_not_finite_stops_the_step() -> None:
    weight = Parameter(torch.zeros(2))
    optimizer = Optimizer([ParameterGroup([weight], 0.1)])

    class SqrtAtZero(NLL):
        def __call__(self, inputs: Any) -> LossOutput:
            return LossOutput(weight.sqrt().sum())

    with pytest.raises(NumericsError, match="gradient norm is inf"), accumulating(optimizer) as s:
        s.add({"x": Term(SqrtAtZero(), predictions)}, lambda micro: {"x": micro}, [texts()])
    assert weight.tolist() == [0.0, 0.0]


def test_an_empty_count_does_not_divide_by_zero() -> None:
    policy = TabularPolicy()
    optimizer = recorder(policy)
    nothing = TextBatch(
        *(torch.zeros((2, 3), dtype=d) for d in (torch.long, torch.bool, torch.bool))
    )
    with accumulating(optimizer) as step:
        step.add(
            {"ptx": Term(NLL(), predictions)},
            lambda micro: {"ptx": (policy.next_token_logprobs(micro), micro.predicted)},
            [nothing],
        )
    assert step.stats["ptx/loss"] == 0.0
    assert (optimizer.gradient == 0).all()

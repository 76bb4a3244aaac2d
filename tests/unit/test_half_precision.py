"""Gradients of half-precision weights are summed in float32, over any number of micro-batches."""

from __future__ import annotations

import pytest
import torch
from rlhf_kit_instructgpt.losses import TokenNLL
from rlhf_kit_instructgpt.options import NoOptions
from torch import Tensor
from torch.nn import Parameter

from rlhf_kit.engine.accumulate import AccumulatingStep, Term
from rlhf_kit.engine.optim import Optimizer, ParameterGroup
from rlhf_kit.types import Masked, NllInputs

ROWS, WIDTH = 256, 64


def gradient(size: int, dtype: torch.dtype) -> tuple[Tensor, dict[str, float]]:
    """Of a large first term and a small second one, which travel in micro-batches of ``size``."""
    generator = torch.Generator().manual_seed(0)
    large, small = torch.randn((2, ROWS, WIDTH), generator=generator).to(dtype)
    weight = Parameter(torch.zeros(WIDTH, dtype=dtype))
    optimizer = Optimizer([ParameterGroup([weight], 1.0)])
    step = AccumulatingStep(optimizer, [weight])
    for name, rows, scale in (("large", large + 1.0, 30.0), ("small", small, 1.0)):

        def forward(micro: Tensor, name: str = name) -> dict[str, NllInputs]:
            logprobs = (micro @ weight).float()[:, None]
            return {name: NllInputs(logprobs, torch.ones_like(logprobs, dtype=torch.bool))}

        step.add(
            {name: Term(TokenNLL(NoOptions()), counted, scale)}, forward, rows.split(size), name
        )
    (found,) = optimizer.gradients([weight])
    assert found is not None
    return found.double(), step.stats


def counted(rows: Tensor) -> Masked:
    return Masked(torch.ones((len(rows), 1), dtype=torch.bool))


@pytest.mark.parametrize("size", [1, 7])
def test_micro_batches_lose_nothing_in_bfloat16(size: int) -> None:
    """256 additions in bfloat16 would lose about two percent of the sum, and most of `small`."""
    wanted, norms = gradient(ROWS, torch.float32)
    found, own = gradient(size, torch.bfloat16)
    assert ((found - wanted).norm() / wanted.norm()).item() < 2e-3
    for name in ("large", "small"):
        key = f"gradient_norm/{name}"
        assert own[key] == pytest.approx(norms[key], rel=2e-2), name


def test_gradients_are_float32_and_cleared() -> None:
    weight = Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = Optimizer([ParameterGroup([weight], 0.1)], max_gradient_norm=None)
    for _ in range(3):
        weight.float().sum().backward()
        optimizer.absorb()
        assert weight.grad is None
    (found,) = optimizer.gradients([weight])
    assert found is not None
    assert (found.dtype, found.tolist()) == (torch.float32, [3.0] * 4)
    optimizer.zero_grad()
    assert optimizer.gradients([weight]) == [None]
    before = weight.detach().clone()
    weight.float().sum().backward()  # a caller that does not absorb still takes the whole step
    assert optimizer.step() == pytest.approx(2.0)
    assert not torch.equal(weight, before)


def test_a_group_may_have_a_schedule_of_its_own() -> None:
    one, two = Parameter(torch.zeros(1)), Parameter(torch.zeros(1))
    groups = [ParameterGroup([one], 1.0), ParameterGroup([two], 0.5, lambda step: 1.0)]
    optimizer = Optimizer(groups, schedule=lambda step: 0.1 * (step + 1))
    assert optimizer.learning_rates == [pytest.approx(0.1), 0.5]
    (one + two).sum().backward()
    optimizer.step()
    assert optimizer.learning_rates == [pytest.approx(0.2), 0.5]

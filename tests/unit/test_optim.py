"""The optimizer: float32 masters under low precision, schedules, and state that survives."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from rlhf_kit.engine.optim import Optimizer, ParameterGroup, constant, cosine
from rlhf_kit.errors import NumericsError


def gradient(step: int, size: int = 4) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(step))


def take(optimizer: Optimizer, weight: Parameter, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        weight.grad = gradient(step).to(weight.dtype)
        optimizer.step()


def test_bfloat16_weights_move_by_updates_below_their_resolution() -> None:
    """Below 1, a step of bfloat16 is 1/256: updates of 1e-4 would vanish without masters."""
    weight = Parameter(torch.ones(4, dtype=torch.bfloat16))
    assert (weight.detach() - 1e-4 == 1).all()
    optimizer = Optimizer([ParameterGroup([weight], 1e-4)])
    for step in range(100):
        optimizer.zero_grad()
        weight.grad = torch.ones(4, dtype=torch.bfloat16)
        optimizer.step()
        if step == 5:
            assert (weight == 1).all()
    (master,) = optimizer.state_dict()["masters"]
    assert master.dtype == torch.float32
    # Under a constant gradient, Adam moves by the learning rate: 100 steps of 1e-4.
    torch.testing.assert_close(master, torch.full((4,), 0.99), rtol=1e-5, atol=0)
    assert weight.tolist() == [0.98828125] * 4  # 0.99, rounded to bfloat16
    assert weight.dtype == torch.bfloat16


def test_float32_weights_have_no_second_copy() -> None:
    weight = Parameter(torch.ones(4))
    optimizer = Optimizer([ParameterGroup([weight], 1e-4)])
    assert optimizer.state_dict()["masters"] == [None]


def test_float64_weights_keep_their_precision() -> None:
    weight = Parameter(torch.full((4,), 1 / 3, dtype=torch.float64))
    optimizer = Optimizer([ParameterGroup([weight], 1e-12)], max_gradient_norm=None)
    weight.grad = torch.ones(4, dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(weight.detach() - 1 / 3, torch.full((4,), -1e-12).double(),
                               rtol=1e-3, atol=0)  # fmt: skip


def test_the_first_step_is_the_learning_rate_per_group() -> None:
    """AdamW's first update is lr x sign(g), up to eps."""
    first, second = Parameter(torch.zeros(2)), Parameter(torch.zeros(2))
    groups = [ParameterGroup([first], 0.1), ParameterGroup([second], 0.001), ParameterGroup([], 9)]
    optimizer = Optimizer(groups, max_gradient_norm=None)
    assert optimizer.learning_rates == [0.1, 0.001]
    first.grad = second.grad = torch.tensor([3.0, -3.0])
    assert optimizer.step() == pytest.approx(6.0)  # sqrt(4 x 9), before clipping
    assert first.tolist() == pytest.approx([-0.1, 0.1])
    assert second.tolist() == pytest.approx([-0.001, 0.001])


def test_clipping_is_over_all_groups_and_reports_the_norm_before() -> None:
    weights = [Parameter(torch.zeros(1)), Parameter(torch.zeros(1))]
    optimizer = Optimizer(
        [ParameterGroup([w], 0.1) for w in weights],
        max_gradient_norm=1.0,
        betas=(0.0, 0.0),
        eps=1.0,
    )
    weights[0].grad, weights[1].grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert optimizer.step() == pytest.approx(5.0)
    # Clipped to 0.6 and 0.8; with eps 1 the update is lr g / (|g| + 1).
    assert weights[0].item() == pytest.approx(-0.1 * 0.6 / 1.6, rel=1e-4)
    assert weights[1].item() == pytest.approx(-0.1 * 0.8 / 1.8, rel=1e-4)


def test_a_frozen_parameter_stays() -> None:
    used, unused = Parameter(torch.zeros(1)), Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimizer = Optimizer([ParameterGroup([used, unused], 0.1)], weight_decay=0.1)
    used.grad = torch.ones(1)
    optimizer.step()
    assert unused.item() == 1.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_gradient_changes_nothing(value: float) -> None:
    weight = Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = Optimizer([ParameterGroup([weight], 0.1)])
    weight.grad = torch.tensor([1.0, value, 1.0, 1.0], dtype=torch.bfloat16)
    with pytest.raises(NumericsError, match="the step was not taken"):
        optimizer.step()
    assert weight.tolist() == [1.0] * 4
    assert optimizer.state_dict()["step"] == 0
    take(optimizer, weight, range(1))
    assert torch.isfinite(weight).all()


def test_constant_schedule() -> None:
    """arXiv:2203.02155, appendix C.4: ten iterations from a tenth of the peak."""
    schedule = constant(10)
    assert [schedule(step) for step in (0, 5, 10, 500)] == pytest.approx([0.1, 0.55, 1.0, 1.0])
    assert constant()(0) == 1.0


def test_cosine_schedule() -> None:
    schedule = cosine(100, 0.1)
    wanted = [1.0, 0.1 + 0.9 * 0.8535533905932737, 0.55, 0.1, 0.1]
    assert [schedule(step) for step in (0, 25, 50, 100, 1000)] == pytest.approx(wanted)
    warm = cosine(110, 0.0, warmup=10)
    assert [warm(step) for step in (0, 4, 9, 10, 60, 110)] == pytest.approx(
        [0.1, 0.5, 1.0, 1.0, 0.5, 0.0]
    )
    assert cosine(0)(5) == pytest.approx(0.1)  # no steps at all: no division by zero


def test_the_schedule_is_followed() -> None:
    weight = Parameter(torch.zeros(1))
    optimizer = Optimizer([ParameterGroup([weight], 1.0)], schedule=cosine(2, 0.0))
    rates = []
    for _ in range(3):
        rates += optimizer.learning_rates
        weight.grad = torch.ones(1)
        optimizer.step()
    assert rates == pytest.approx([1.0, 0.5, 0.0])
    assert weight.item() == pytest.approx(-1.5, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_continues_bit_identically(dtype: torch.dtype) -> None:
    def fresh() -> tuple[Parameter, Optimizer]:
        weight = Parameter(torch.linspace(-1, 1, 4).to(dtype))
        options = {"schedule": cosine(20, 0.1, 3), "weight_decay": 0.01}
        return weight, Optimizer([ParameterGroup([weight], 0.01)], **options)

    straight, optimizer = fresh()
    take(optimizer, straight, range(12))

    first, optimizer = fresh()
    take(optimizer, first, range(5))
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "weight": first.detach()}, file)
    take(optimizer, first, range(7))  # what happens after a checkpoint is not in it
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    second, optimizer = fresh()
    with torch.no_grad():
        second.copy_(saved["weight"])
    optimizer.load_state_dict(copy.deepcopy(saved["optimizer"]))
    take(optimizer, second, range(5, 12))
    assert torch.equal(straight, second)


def test_a_float32_checkpoint_goes_on_in_bfloat16() -> None:
    """A checkpoint without masters (trained in float32) must not bring the old weights back."""
    trained = Parameter(torch.tensor([1.0, 2.0]))
    first = Optimizer([ParameterGroup([trained], 0.5)])
    trained.grad = torch.ones(2)
    first.step()
    resumed = Parameter(torch.zeros(2).bfloat16())
    second = Optimizer([ParameterGroup([resumed], 0.5)])
    with torch.no_grad():
        resumed.copy_(trained)  # the policy is restored before the optimizer
    second.load_state_dict(first.state_dict())
    assert torch.equal(resumed.float(), trained.detach().bfloat16().float())

"""What strangers' parts return: used if it is what the seam promises, else refused in a line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from odd import values
from rlhf_kit_policy_gradient.experience import estimated
from torch import Tensor

from rlhf_kit.engine.accumulate import accumulating
from rlhf_kit.engine.optim import Optimizer
from rlhf_kit.engine.scoring import score, try_out_labeler
from rlhf_kit.errors import RlhfKitError
from rlhf_kit.interfaces import ParameterGroup, Term
from rlhf_kit.stagekit.sample import drawn
from rlhf_kit.testing import TabularPolicy, made_up_experience, made_up_samples
from rlhf_kit.types import Advantages, LossOutput, Masked, NllInputs, Samples, Sampling

pytestmark = pytest.mark.fuzz
SHAPES = ((), (0,), (1,), (2,), (6,), (3,), (6, 1), (1, 6), (6, 3), (3, 4), (2, 3, 4))
TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64)


def tensors() -> st.SearchStrategy[Tensor]:
    def make(shape: tuple[int, ...], dtype: torch.dtype, fill: float, grad: bool) -> Tensor:
        x = torch.full(shape, fill).to(dtype)
        return x.requires_grad_() if grad and x.is_floating_point() else x

    fills = st.sampled_from((0.0, 1.0, -2.5, float("nan"), float("inf"), 1e38))
    return st.builds(make, st.sampled_from(SHAPES), st.sampled_from(TYPES), fills, st.booleans())


class Strange:
    """An object that nobody knows."""


odd = st.one_of(
    tensors(), values, st.builds(Strange), st.just(Strange), st.builds(object),
    st.lists(tensors(), max_size=3), st.builds(lambda x: x.numpy(), st.just(torch.ones(6))),
    st.lists(st.floats(), min_size=6, max_size=6), st.just(lambda: 1), st.just(iter([1.0] * 6)),
)  # fmt: skip
raising = st.sampled_from((KeyError("x"), SystemExit(0), RecursionError(), StopIteration(), 5))


def refused(call: Callable[[], Any]) -> Any:
    """What ``call`` gives; None where it is refused, in one line."""
    try:
        return call()
    except RlhfKitError as error:
        assert len(str(error).splitlines()) == 1
        assert len(str(error)) < 1000
        return None


def answering(value: Any, error: Any) -> Callable[..., Any]:
    def answer(*inputs: Any, **named: Any) -> Any:
        if isinstance(error, BaseException):
            raise error
        return value

    return answer


@given(odd, raising)
def test_rewards(value: Any, error: Any) -> None:
    samples = made_up_samples()
    found = refused(lambda: score(answering(value, error), samples))
    if found is not None:
        assert found.total.shape == (len(samples),)
        assert found.total.dtype == torch.float32 and bool(found.total.isfinite().all())


@given(odd, raising)
def test_labelers(value: Any, error: Any) -> None:
    refused(lambda: try_out_labeler(answering(value, error), [{"prompt": "a"}]))


@given(odd, odd, st.booleans(), raising)
def test_estimators(one: Any, two: Any, whole: bool, error: Any) -> None:
    mask = torch.tensor([[True, True, True, False]] * 3)
    experience = made_up_experience(torch.zeros(3, 4), mask, values=torch.zeros(3, 4))
    value = Advantages(one, two) if whole else one
    found = refused(lambda: estimated(answering(value, error), experience))
    if found is not None:
        assert bool(found.advantages.isfinite().all() and found.returns.isfinite().all())


@given(odd, raising)
def test_samplers(value: Any, error: Any) -> None:
    prompts = made_up_samples().prompts
    refused(lambda: drawn(answering(value, error), TabularPolicy(), prompts, Sampling(3, 1.0, 0)))


@given(st.sampled_from(("response_tokens", "response_mask", "finished", "temperature")), odd)
def test_samplers_with_one_part_wrong(part: str, value: Any) -> None:
    right = made_up_samples()

    def sampler(*inputs: Any) -> Samples:
        return replace(right, **{part: value})

    refused(lambda: drawn(sampler, TabularPolicy(), right.prompts, Sampling(3, 1.0, 0)))


class Loss:
    def __init__(self, output: Any, count: Any) -> None:
        self.output, self.given = output, count

    def count(self, units: Masked) -> Any:
        return self.given

    def __call__(self, inputs: NllInputs) -> Any:
        return self.output


@given(odd, odd, st.sampled_from(("bare", "total", "stats")), st.booleans())
def test_losses(value: Any, count: Any, where: str, counted: bool) -> None:
    weight = torch.nn.Parameter(torch.ones(()))
    outputs = {"bare": value, "total": LossOutput(value), "stats": LossOutput(weight, {"a": value})}
    mask = torch.ones((2, 3), dtype=torch.bool)
    inputs = NllInputs(weight * torch.zeros(2, 3), mask)
    loss = Loss(outputs[where], mask.sum() if counted else count)

    def step() -> float:
        optimizer = Optimizer([ParameterGroup([weight], 1e-3)], max_gradient_norm=None)
        with accumulating(optimizer) as found:
            found.add({"mine": Term(loss, lambda _: Masked(mask))}, lambda _: {"mine": inputs}, [0])
        return float(weight)

    found = refused(step)
    assert found is None or found == found

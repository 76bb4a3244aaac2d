"""The kit must fail on broken losses over pairs, labelled answers and sums of the whole step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from rlhf_kit_guests.dpo import DPO
from rlhf_kit_guests.kto import KTO
from rlhf_kit_guests.options import DPOOptions, KTOOptions
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_kit.testing import check_labelled_loss, check_pair_loss, check_policy_loss
from rlhf_kit.types import (
    LabelledInputs,
    LossOutput,
    Masked,
    MismatchedInputs,
    PairInputs,
    PolicyLossInputs,
)

MISMATCHED = {"mismatched"}


@pytest.mark.parametrize("seed", [0, 1])
def test_right_ones_pass(seed: int) -> None:
    check_pair_loss(DPO(DPOOptions()), seed=seed)
    check_labelled_loss(KTO(KTOOptions()), needs=MISMATCHED, seed=seed)
    options = KTOOptions(beta=0.2, undesirable=1.3)
    check_labelled_loss(KTO(options), needs=MISMATCHED, seed=seed)
    check_labelled_loss(WithoutBaseline(), seed=seed)


class Changed(DPO):
    """DPO of changed inputs, or with a changed answer."""

    def __init__(
        self,
        inputs: Callable[[PairInputs], PairInputs] = lambda i: i,
        total: Callable[[Tensor, PairInputs], Tensor] = lambda total, _: total,
    ) -> None:
        super().__init__(DPOOptions())
        self.inputs, self.total = inputs, total

    def __call__(self, inputs: PairInputs) -> LossOutput:
        output = super().__call__(self.inputs(inputs))
        return replace(output, total=self.total(output.total, inputs))


class MasksLate(DPO):
    """A mask after the product: what stands in the padding is in the gradient."""

    def __call__(self, inputs: PairInputs) -> LossOutput:
        chosen = inputs.chosen - inputs.reference_chosen
        rejected = inputs.rejected - inputs.reference_rejected
        per_pair = -logsigmoid(0.1 * (chosen - rejected))
        return LossOutput((per_pair * inputs.mask).sum())


def swapped(i: PairInputs) -> PairInputs:
    return replace(
        i,
        chosen=i.rejected,
        rejected=i.chosen,
        reference_chosen=i.reference_rejected,
        reference_rejected=i.reference_chosen,
    )


def all_rows(i: PairInputs) -> PairInputs:
    return replace(i, mask=torch.ones_like(i.mask))


def only_chosen(i: PairInputs) -> PairInputs:
    return replace(i, rejected=i.rejected.detach())


def per_token(i: PairInputs) -> PairInputs:
    return replace(i, chosen=i.chosen / i.chosen_tokens.sum())


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (Changed(swapped), "check the sign"),
        (Changed(total=lambda t, i: t / i.mask.sum()), "sums over what count counts, never means"),
        (Changed(all_rows), "gradient flows into padding; apply inputs.mask"),
        (MasksLate(DPOOptions()), "in the padding \\(use torch.where\\(mask, x, 0\\)"),
        (Changed(only_chosen), "no gradient reaches rejected"),
        (Changed(per_token), "in the padding"),
        (Changed(total=lambda t, _: t.double()), "it should stay float32"),
    ],
)
def test_pair_losses(loss: Any, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        check_pair_loss(loss)


def test_a_pair_loss_that_counts_answers_of_the_model() -> None:
    class Counting(DPO):
        def count(self, units: Any) -> Tensor:
            return (units.chosen > units.rejected).sum()

    with pytest.raises(AssertionError, match="before the forward pass with Masked"):
        check_pair_loss(Counting(DPOOptions()))


class WithoutBaseline:
    """KTO with a baseline of 0, which observes nothing; mistakes can be chosen."""

    def __init__(self, mistake: str = "") -> None:
        self.mistake = mistake

    def count(self, units: Masked) -> Tensor:
        return units.mask.sum()

    def __call__(self, inputs: LabelledInputs) -> LossOutput:
        mask = torch.ones_like(inputs.mask) if self.mistake == "all rows" else inputs.mask
        reward = torch.where(mask, inputs.logprobs - inputs.reference_logprobs, 0.0)
        if self.mistake == "own baseline":
            reward = reward - reward.detach().mean()
        desirable = inputs.desirable ^ (self.mistake == "sign")
        sign = torch.where(desirable, 1.0, -1.0)
        if self.mistake == "desirable only":
            sign = sign.clamp(min=0)
        per_answer = torch.where(mask, 1 - torch.sigmoid(0.1 * sign * reward), 0.0)
        total = per_answer.sum()
        return LossOutput(total / mask.sum().clamp(min=1) if self.mistake == "mean" else total)


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        ("sign", "log-probability of desirable answers and lower that of the others"),
        ("desirable only", "log-probability of desirable answers and lower that of the others"),
        ("mean", "sums over what count counts, never means"),
        ("all rows", "gradient flows into padding"),
        ("own baseline", "changed total"),
    ],
)
def test_labelled_losses(mistake: str, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        check_labelled_loss(WithoutBaseline(mistake))


def test_a_loss_that_reads_what_its_component_does_not_need() -> None:
    with pytest.raises(AttributeError, match="mismatched"):
        check_labelled_loss(KTO(KTOOptions()))


class BrokenKTO(KTO):
    """The mistakes of a loss with sums of the whole step."""

    def __init__(self, mistake: str) -> None:
        super().__init__(KTOOptions())
        self.mistake = mistake
        self.kept: dict[str, Tensor] = {}

    def observe(self, inputs: MismatchedInputs) -> Mapping[str, Tensor]:
        found = dict(super().observe(inputs))
        if self.mistake == "mean":
            found["gap"] = found["gap"] / found["rows"].clamp(min=1)
            found["rows"] = torch.ones(())
        if self.mistake == "padding":
            found["gap"] = (inputs.mismatched - inputs.reference_mismatched).sum()
        if self.mistake == "per row":
            found["rows"] = inputs.mask.long()
        if self.mistake == "keeps":
            self.kept = found
        if self.mistake == "moving average":
            old = self.kept.get("gap", torch.zeros(()))
            self.kept = {**found, "gap": 0.9 * old + 0.1 * found["gap"]}
        return found

    def __call__(self, inputs: LabelledInputs, observed: Mapping[str, Tensor]) -> LossOutput:
        return super().__call__(inputs, self.kept or observed)


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        ("mean", "does not add up to that of the whole; it should be a sum"),
        ("padding", "in the padding"),
        ("per row", "observe: 'rows' should be a tensor of shape \\[\\]"),
        ("keeps", "adding up micro-batches of 1"),
        ("moving average", "a second call with the same inputs changed statistic"),
    ],
)
def test_observing_losses(mistake: str, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        check_labelled_loss(BrokenKTO(mistake), needs=MISMATCHED)


class MeanOverPrompts:
    """REINFORCE of which every prompt counts once, however many responses it has."""

    def count(self, units: Any) -> Tensor:
        return len(units.group[units.mask.any(1)].unique()) * torch.ones(())

    def __call__(self, inputs: PolicyLossInputs) -> LossOutput:
        logprobs = torch.where(inputs.mask, inputs.logprobs, 0.0)
        advantages = torch.where(inputs.mask, inputs.advantages, 0.0)
        same = inputs.group[:, None] == inputs.group[None, :]
        size = (same & inputs.mask.any(1)[None, :]).sum(1).clamp(min=1)
        return LossOutput(-((advantages * logprobs).sum(1) / size).sum())


def test_a_policy_loss_over_groups_says_that_it_needs_them_whole() -> None:
    check_policy_loss(MeanOverPrompts(), needs={"whole_groups"})
    with pytest.raises(AssertionError, match="adding up micro-batches of 1"):
        check_policy_loss(MeanOverPrompts())

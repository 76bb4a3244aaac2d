"""Losses that need sums of the whole optimizer step; the others do not pay for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from rlhf_kit_guests.kto import KTO
from rlhf_kit_guests.options import KTOOptions
from torch import Tensor

from rlhf_kit.engine.accumulate import AccumulatingStep, Term
from rlhf_kit.engine.optim import Optimizer, ParameterGroup
from rlhf_kit.errors import NumericsError
from rlhf_kit.testing import TabularPolicy, TabularSampler
from rlhf_kit.types import (
    LabelledInputs,
    LossOutput,
    Masked,
    MismatchedInputs,
    Prompts,
    Samples,
    Sampling,
)

# Numbers that float32 holds: counts and weights are rounded to it.
ROWS, BETA, DESIRABLE, UNDESIRABLE = 8, 0.5, 1.0, 1.25


@dataclass(frozen=True)
class Labelled:
    """Answers, what was said of them, and the answers of other prompts."""

    answers: Samples
    desirable: Tensor  # [B] bool
    mismatched: Samples

    @property
    def judged(self) -> Masked:
        return Masked(torch.ones_like(self.desirable))

    def split(self, size: int) -> Iterator[Labelled]:
        for rows in torch.arange(len(self.desirable)).split(size):
            yield Labelled(
                self.answers.select(rows), self.desirable[rows], self.mismatched.select(rows)
            )


class Model:
    """A policy away from its reference, in float64, that counts its forward passes."""

    def __init__(self) -> None:
        self.policy = TabularPolicy(dtype=torch.float64)
        with torch.no_grad():
            self.policy.table += torch.randn(13, 3, generator=seeded(7), dtype=torch.float64)
        self.passes: list[tuple[Samples, bool]] = []  # of what, and whether with gradients

    def summed(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Of policy and reference, both [B]."""
        reference = self.policy.reference().evaluate(samples).logprobs.sum(1)
        return self.policy.evaluate(samples).logprobs.sum(1), reference

    def forward(self, batch: Labelled) -> dict[str, LabelledInputs]:
        self.passes.append((batch.answers, torch.is_grad_enabled()))
        judged, tokens = batch.judged.mask, batch.answers.mask.sum(1)
        inputs = LabelledInputs(*self.summed(batch.answers), batch.desirable, tokens, judged)
        return {"kto": inputs, "plain": inputs, "matched": inputs}

    def crossed(self, batch: Labelled) -> MismatchedInputs:
        self.passes.append((batch.mismatched, torch.is_grad_enabled()))
        return MismatchedInputs(*self.summed(batch.mismatched), batch.judged.mask)


class Plain:
    """The log-probability of what is desirable: observes nothing."""

    def count(self, units: Masked) -> Tensor:
        return units.mask.sum()

    def __call__(self, inputs: LabelledInputs) -> LossOutput:
        return LossOutput(-torch.where(inputs.desirable, inputs.logprobs, 0.0).sum())


class Matched(KTO):
    """Observes what it reads: the gain of the matched answers themselves."""

    def observe(self, inputs: LabelledInputs) -> Mapping[str, Tensor]:
        gain = inputs.logprobs - inputs.reference_logprobs
        return {"gap": gain.sum(), "rows": inputs.mask.sum()}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labelled(policy: TabularPolicy) -> Labelled:
    one = torch.zeros((ROWS, 1), dtype=torch.long)
    prompts = Prompts(
        one, one.bool(), [{"prompt": ""}] * ROWS, torch.arange(ROWS), torch.arange(ROWS)
    )
    draw = TabularSampler()
    answers = draw(policy.reference(), prompts, Sampling(3, 1.0, 1))
    mismatched = draw(policy, prompts, Sampling(3, 1.0, 2))
    return Labelled(answers, torch.arange(ROWS) % 3 != 0, mismatched)


OPTIONS = KTOOptions(beta=BETA, desirable=DESIRABLE, undesirable=UNDESIRABLE)


def term(loss: Any, model: Model) -> Term:
    """Over judged answers; KTO observes mismatched ones."""
    observed = model.crossed if type(loss) is not Matched else None
    return Term(loss, lambda micro: micro.judged, observed=observed)


def one_step(size: int, *losses: str) -> tuple[Tensor, dict[str, float], Model]:
    """The gradient that a step in micro-batches of ``size`` adds up, and its statistics."""
    model = Model()
    batch = labelled(model.policy)
    known: dict[str, Any] = {"kto": KTO(OPTIONS), "plain": Plain(), "matched": Matched(OPTIONS)}
    terms = {name: term(known[name], model) for name in losses}
    step = AccumulatingStep(Optimizer([ParameterGroup(list(model.policy.parameters()), 0.1)]))
    step.add(terms, model.forward, list(batch.split(size)))
    (gradient,) = step.optimizer.gradients(list(model.policy.parameters()))
    assert gradient is not None
    return gradient.clone(), step.stats, model


def equation_8(batch: Labelled, model: Model) -> tuple[Tensor, float]:
    """Loss and baseline of the whole batch, a row at a time from the tables of logits."""

    def reward(samples: Samples, row: int) -> Tensor:
        tokens = samples.response_tokens[row][samples.response_mask[row]][None, :]
        prefixes = model.policy.prefixes(tokens)[0]
        terms = [
            torch.log_softmax(table[prefix], 0)[token] * sign
            for table, sign in ((model.policy.table, 1), (model.policy.reference_table, -1))
            for prefix, token in zip(prefixes.tolist(), tokens[0].tolist(), strict=True)
        ]
        return torch.stack(terms).sum()

    z = max(0.0, sum(reward(batch.mismatched, i).item() for i in range(ROWS)) / ROWS)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(ROWS):
        r = reward(batch.answers, i)
        if batch.desirable[i]:
            total = total + DESIRABLE * (1 - 1 / (1 + (-BETA * (r - z)).exp()))
        else:
            total = total + UNDESIRABLE * (1 - 1 / (1 + (-BETA * (z - r)).exp()))
    return total / ROWS, z


@pytest.mark.parametrize("size", [1, 3, ROWS])
def test_the_gradient_is_that_of_the_whole_batch(size: int) -> None:
    """arXiv:2402.01306, equation 8, whatever the micro-batches."""
    model = Model()
    loss, baseline = equation_8(labelled(model.policy), model)
    (wanted,) = torch.autograd.grad(loss, model.policy.table)
    found, stats, _ = one_step(size, "kto")
    assert wanted.abs().max() > 1e-3
    assert baseline > 0.1
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)
    assert stats["kto/loss"] == pytest.approx(loss.item(), rel=1e-6)


def test_what_is_observed_is_of_the_whole_step() -> None:
    """A baseline of each micro-batch would give another gradient."""
    of_parts, of_all = (one_step(size, "matched")[0] for size in (3, ROWS))
    torch.testing.assert_close(of_parts, of_all, rtol=0, atol=1e-14)
    model, gradients = Model(), []
    for part in labelled(model.policy).split(3):
        step = AccumulatingStep(Optimizer([ParameterGroup([model.policy.table], 0.1)]))
        step.optimizer.zero_grad()
        step.add({"matched": term(Matched(OPTIONS), model)}, model.forward, [part])
        (gradient,) = step.optimizer.gradients([model.policy.table])
        assert gradient is not None
        gradients.append(gradient.clone() * len(part.desirable) / ROWS)
    assert (sum(gradients) - of_all).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("losses", "observed"),
    [
        (("plain",), ""),
        (("kto",), "mismatched"),
        (("plain", "kto"), "mismatched"),
        (("matched",), "answers"),
        (("plain", "matched", "kto"), "both"),
    ],
)
def test_who_does_not_observe_pays_no_forward_pass(losses: tuple[str, ...], observed: str) -> None:
    """What is observed comes first, of all micro-batches, and keeps no activations."""
    _, _, model = one_step(3, *losses)
    batch, micro_batches = labelled(Model().policy), 3
    names = {
        tuple(getattr(part, name).response_tokens.flatten().tolist()): name
        for name in ("answers", "mismatched")
        for part in batch.split(3)
    }
    found = [(names[tuple(x.response_tokens.flatten().tolist())], g) for x, g in model.passes]
    each = {"": [], "both": ["answers", "mismatched"]}.get(observed, [observed])
    first = [(name, False) for name in each] * micro_batches
    assert found == first + [("answers", True)] * micro_batches


def test_two_losses_on_one_forward_pass_add_up() -> None:
    both, figures, _ = one_step(3, "plain", "kto")
    alone = [one_step(ROWS, name)[0] for name in ("plain", "kto")]
    torch.testing.assert_close(both, sum(alone), rtol=0, atol=1e-14)
    assert {"plain/loss", "kto/loss", "kto/gain"} <= figures.keys()


def test_a_sum_that_is_not_finite_stops_the_step() -> None:
    class Infinite(KTO):
        def observe(self, inputs: MismatchedInputs) -> Mapping[str, Tensor]:
            return {**super().observe(inputs), "gap": torch.tensor(torch.nan)}

    model = Model()
    step = AccumulatingStep(Optimizer([ParameterGroup([model.policy.table], 0.1)]))
    with pytest.raises(NumericsError, match="loss 'kto' is nan: the step was not taken"):
        step.add({"kto": term(Infinite(OPTIONS), model)}, model.forward, [labelled(model.policy)])

"""Conformance of losses: a sum over valid units, whatever the padding, order and micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from rlhf_kit.interfaces import AnyLoss, ObservingLoss, Term
from rlhf_kit.testing.compare import (
    GARBAGE,
    clean_masks,
    dirtied,
    finite,
    same,
    widened,
)
from rlhf_kit.testing.sentences import declared, named, require
from rlhf_kit.types import (
    Masked,
    NllInputs,
    PolicyLossInputs,
    SampledUnits,
    ValueLossInputs,
)

MakeInputs = Callable[[torch.Generator], Any]
UnitsOf = Callable[[Any], Any]
Checked = AnyLoss[Any, Any]


@dataclass(frozen=True)
class Answer:
    """A loss's answer, with the gradient with respect to the model's output."""

    count: Tensor
    total: Tensor
    stats: dict[str, Tensor]
    gradient: Tensor
    observed: Mapping[str, Tensor]


class LossCheck:
    """One loss on one set of inputs."""

    def __init__(
        self,
        loss: Checked,
        trained: str,
        units: UnitsOf,
        name: str,
        observes: Callable[[Any], Any] | None = None,
    ) -> None:
        self.loss, self.trained, self.units, self.name = loss, trained, units, name
        self.term = Term(loss, units, observed=observes)

    def observe(self, inputs: Any) -> dict[str, Tensor]:
        """What the loss asks to be added up; nothing unless it is an ObservingLoss."""
        if not isinstance(self.loss, ObservingLoss):
            return {}
        with torch.no_grad():
            own = self.term.observed
            found = dict(self.loss.observe(inputs if own is None else own(inputs)))
        for key, value in found.items():
            require(
                isinstance(value, Tensor) and value.dim() == 0,
                f"{self.name}.observe: {key!r} should be a tensor of shape []",
            )
        return found

    def run(self, inputs: Any, observed: Mapping[str, Tensor] | None = None) -> Answer:
        """``observed``: of the whole optimizer step; None: the inputs are all of it."""
        leaf = getattr(inputs, self.trained).detach().clone().requires_grad_()
        count = self.count(self.units(inputs))
        seen = self.observe(inputs)
        try:
            output = self.term.output(
                replace(inputs, **{self.trained: leaf}), seen if observed is None else observed
            )
        except Exception as error:
            raise AssertionError(
                f"{self.name} raised {type(error).__name__}: {error}; it should accept any "
                "padding, a row without valid places, and any number of rows"
            ) from error
        require(
            isinstance(output.total, Tensor) and output.total.dim() == 0,
            f"{self.name} should return LossOutput with a total of shape [], the sum over units",
        )
        require(
            output.total.requires_grad,
            f"{self.name}: no gradient reaches {self.trained}; it was detached on the way to total",
        )
        (gradient,) = torch.autograd.grad(output.total, leaf, allow_unused=True)
        require(gradient is not None, f"{self.name}: no gradient of total reaches {self.trained}")
        for key, value in output.stats.items():
            require(
                isinstance(value, Tensor) and value.dim() == 0,
                f"{self.name}: statistic {key!r} should be a tensor of shape []",
            )
        stats = {key: value.detach() for key, value in output.stats.items()}
        return Answer(count, output.total.detach(), stats, gradient, seen)

    def count(self, units: Any) -> Tensor:
        try:
            count = self.loss.count(units)
        except AttributeError as error:
            raise AssertionError(
                f"{self.name}.count: {error}; count is called before the forward pass with "
                f"{type(units).__name__}, which has what is known by then"
            ) from error
        require(
            isinstance(count, Tensor) and count.dim() == 0,
            f"{self.name}.count should return a tensor of shape []",
        )
        return count

    def agree(self, found: Answer, wanted: Answer, what: str) -> None:
        """Two answers that should be one, up to rounding."""
        same(found.count, wanted.count, f"{self.name}: {what} changed count")
        same(found.total, wanted.total, f"{self.name}: {what} changed total")
        require(
            found.stats.keys() == wanted.stats.keys(),
            f"{self.name}: {what} changed which statistics there are; always return the same",
        )
        for key, value in wanted.stats.items():
            same(found.stats[key], value, f"{self.name}: {what} changed statistic {key!r}")
        same(
            found.gradient,
            wanted.gradient,
            f"{self.name}: {what} changed the gradient with respect to {self.trained}",
        )


def masked(inputs: Any) -> Masked:
    """What most losses count."""
    return Masked(inputs.mask)


def check_loss(
    loss: Checked,
    make_inputs: MakeInputs,
    *,
    trained: str | None = None,
    units: UnitsOf = masked,
    observes: Callable[[Any], Any] | None = None,
    whole_groups: bool = False,
    seed: int = 0,
) -> None:
    """Check a loss of any seam against what the engine relies on.

    Finite total and gradient; a float32 total; padding (dirty, longer, or a whole row of it) and
    the order of rows change nothing; micro-batches add up to the whole in total, statistics,
    count and gradient, since all of them are sums; count reads masks only; inputs are not written
    to.

    Args:
        loss: the implementation.
        make_inputs: generator -> the loss's inputs: a dataclass with a field ``mask`` [B, W] or
            [B] and other tensors of that shape or [B], at least 4 rows, some padding.
        trained: the field that holds the model's output; by default the first one.
        units: inputs -> what the engine passes to ``count``; by default their mask.
        observes: inputs -> what ``observe`` reads of them; None: the inputs themselves.
        whole_groups: micro-batches keep rows of one ``inputs.group`` together, in their order.
        seed: of the inputs.

    Raises:
        AssertionError: with a sentence that says what broke and what would be right.
    """
    inputs = make_inputs(torch.Generator().manual_seed(seed))
    check = LossCheck(loss, trained or fields(inputs)[0].name, units, named(loss), observes)
    whole = check.run(map_rows(inputs, torch.clone))
    _plain(check, inputs, whole)
    _padding(check, inputs, whole)
    _rows(check, inputs, whole)
    _micro_batches(check, inputs, whole, whole_groups)


def map_rows(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Every tensor changed, as rows go."""
    given = {f.name: getattr(inputs, f.name) for f in fields(inputs)}
    return replace(inputs, **{k: change(x) for k, x in given.items() if isinstance(x, Tensor)})


def map_places(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Every tensor of the mask's shape changed, as padding goes."""
    shape = inputs.mask.shape
    return map_rows(inputs, lambda x: change(x) if x.shape == shape else x)


def _plain(check: LossCheck, inputs: Any, whole: Answer) -> None:
    name = check.name
    finite(whole.total, f"{name}: total is {whole.total.item()} for ordinary inputs")
    finite(whole.gradient, f"{name}: the gradient is not finite for ordinary inputs")
    require(
        whole.total.dtype == torch.float32,
        f"{name}: total is {whole.total.dtype} for float32 inputs; it should stay float32",
    )
    require(whole.count.item() > 0, f"{name}: count is {whole.count.item()} for valid inputs")
    given = map_rows(inputs, torch.clone)
    check.agree(check.run(given), whole, "a second call with the same inputs")
    for f in fields(inputs):
        before, after = getattr(inputs, f.name), getattr(given, f.name)
        require(
            before is None or torch.equal(before, after),
            f"{name} wrote into inputs.{f.name}; make a copy instead",
        )
    scaled = replace(inputs, **{check.trained: getattr(inputs, check.trained) + 1.0})
    require(
        check.count(check.units(scaled)).equal(whole.count),
        f"{name}: count depends on {check.trained}; it should depend on masks only",
    )


def _padding(check: LossCheck, inputs: Any, whole: Answer) -> None:
    name, mask = check.name, inputs.mask
    require(
        bool((whole.gradient[~mask] == 0).all()),
        f"{name}: gradient flows into padding; apply inputs.mask before summing",
    )
    for garbage in GARBAGE:
        # Of opposite signs, so that a difference of two fields does not cancel.
        dirty = map_places(
            inputs,
            lambda x: x if x is mask else dirtied(x, mask, -garbage),  # noqa: B023
        )
        output = dirtied(getattr(inputs, check.trained), mask, garbage)
        dirty = replace(dirty, **{check.trained: output})
        check.agree(
            check.run(dirty),
            whole,
            f"{garbage} in the padding (use torch.where(mask, x, 0) before exp or a product: "
            "0 * NaN is NaN, also in the gradient)",
        )
    if mask.dim() > 1:
        wide = check.run(map_places(inputs, lambda x: widened(x, 3)))
        wide = replace(wide, gradient=wide.gradient[:, : mask.shape[1]])
        check.agree(wide, whole, "three more columns of padding (do not divide by the width)")
    empty = map_rows(inputs, lambda x: torch.cat([x, torch.zeros_like(x[:1])]))
    found = check.run(empty)
    finite(
        found.gradient,
        f"{name}: a row without valid places makes the gradient NaN; clamp what you divide by",
    )
    found = replace(found, gradient=found.gradient[:-1])
    check.agree(found, whole, "a row without valid places (it should add nothing)")


def _rows(check: LossCheck, inputs: Any, whole: Answer) -> None:
    order = torch.arange(len(inputs.mask)).flip(0)
    found = check.run(map_rows(inputs, lambda x: x[order]))
    found = replace(found, gradient=found.gradient[order])
    check.agree(found, whole, "another order of the rows")


def _micro_batches(check: LossCheck, inputs: Any, whole: Answer, whole_groups: bool) -> None:
    rows = torch.arange(len(inputs.mask))
    for size in (1, 3):
        chunks: list[Tensor] = list(rows.split(size))
        if whole_groups:
            chunks = [rows[inputs.group == group] for group in inputs.group.unique()]
        parts = [
            check.run(map_rows(inputs, lambda x: x[chunk]), whole.observed)  # noqa: B023
            for chunk in chunks
        ]
        added = Answer(
            torch.stack([p.count for p in parts]).sum(),
            torch.stack([p.total for p in parts]).sum(),
            {key: torch.stack([p.stats[key] for p in parts]).sum() for key in whole.stats},
            torch.cat([p.gradient for p in parts]),
            whole.observed,
        )
        for key, value in whole.observed.items():
            same(
                torch.stack([p.observed[key] for p in parts]).sum(),
                value,
                f"{check.name}.observe: {key!r} of micro-batches of {size} does not add up to that "
                "of the whole; it should be a sum",
            )
        what = (
            f"adding up micro-batches of {size} (total and statistics are sums over what count "
            "counts, never means: the engine divides once)"
        )
        check.agree(added, whole, what)


def check_policy_loss(loss: Checked, *, needs: Collection[str] = (), seed: int = 0) -> None:
    """:func:`check_loss` for seam ``policy_loss``, with ratios inside and outside a clip range.

    Also: the first gradient goes the way of the advantages. ``needs`` are its component's: with
    "whole_groups" micro-batches keep the responses to one prompt together, and only with "own_kl"
    may the reference matter.
    """
    declared("policy_loss", named(loss), needs)
    check_loss(
        loss, _policy_inputs, units=_sampled, whole_groups="whole_groups" in needs, seed=seed
    )
    inputs = _policy_inputs(torch.Generator().manual_seed(seed))
    if "own_kl" not in needs:
        check = LossCheck(loss, "logprobs", _sampled, named(loss))
        other = replace(inputs, reference_logprobs=inputs.reference_logprobs - 0.5)
        require(
            check.run(inputs).total.equal(check.run(other).total),
            f'{named(loss)}: another reference gives another total; add "own_kl" to its '
            "component's needs, or the KL may be paid twice",
        )
    _pushes_the_right_way(loss, inputs)


def _policy_inputs(generator: torch.Generator) -> PolicyLossInputs:
    mask = clean_masks(7, 5, generator)
    old = -3 * torch.rand((7, 5), generator=generator)
    logprobs = old + 0.3 * torch.randn((7, 5), generator=generator)
    return PolicyLossInputs(
        logprobs,
        old,
        torch.randn((7, 5), generator=generator),
        mask,
        old + 0.1 * torch.randn((7, 5), generator=generator),
        old,
        1 + torch.arange(7) // 2,
    )


def _sampled(inputs: PolicyLossInputs) -> SampledUnits:
    return SampledUnits(inputs.mask, inputs.old_logprobs, inputs.group)


def _pushes_the_right_way(loss: Checked, inputs: PolicyLossInputs) -> None:
    """The first gradient of every published policy loss is the policy gradient's direction."""
    advantages = torch.where(torch.arange(7)[:, None] % 2 == 0, 1.0, -1.0).expand(7, 5)
    old = inputs.old_logprobs
    at_start = replace(inputs, logprobs=old, advantages=advantages, reference_logprobs=old)
    gradient = LossCheck(loss, "logprobs", _sampled, named(loss)).run(at_start).gradient
    require(
        bool((gradient * advantages <= 0).all()) and bool((gradient[inputs.mask] != 0).all()),
        f"{named(loss)}: at the policy that sampled, minimising total should raise the "
        "log-probability of tokens with positive advantage and lower the others; check the sign",
    )


def check_value_loss(loss: Checked, *, seed: int = 0) -> None:
    """:func:`check_loss` for seam ``value_loss``, with values near to and far from the old ones."""

    def make(generator: torch.Generator) -> ValueLossInputs:
        old, values, returns = torch.randn((3, 7, 5), generator=generator)
        return ValueLossInputs(old + 0.3 * values, old, returns, clean_masks(7, 5, generator))

    check_loss(loss, make, seed=seed)


def check_nll_loss(loss: Checked, *, seed: int = 0) -> None:
    """:func:`check_loss` for seam ``nll_loss``."""

    def make(generator: torch.Generator) -> NllInputs:
        mask = clean_masks(7, 5, generator)
        mask[:, 0] &= torch.rand(7, generator=generator) > 0.5  # a prompt's token is no target
        return NllInputs(-3 * torch.rand((7, 5), generator=generator), mask)

    check_loss(loss, make, seed=seed)

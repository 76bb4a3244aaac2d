"""Conformance of losses: a sum over valid units, whatever the padding, order and micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from rlhf_kit.interfaces import Loss
from rlhf_kit.testing.compare import (
    GARBAGE,
    clean_masks,
    dirtied,
    finite,
    same,
    widened,
)
from rlhf_kit.testing.sentences import named, require
from rlhf_kit.testing.toy import made_up_samples
from rlhf_kit.types import (
    ComparisonBatch,
    NllInputs,
    PackedTexts,
    PolicyLossInputs,
    PPOBatch,
    PreferenceInputs,
    TextBatch,
    ValueLossInputs,
)

MakeInputs = Callable[[torch.Generator], Any]
MicroBatch = Callable[[Any], Any]


@dataclass(frozen=True)
class _Result:
    """A loss's answer, with the gradient with respect to the model's output."""

    count: Tensor
    total: Tensor
    stats: dict[str, Tensor]
    gradient: Tensor


class _LossCheck:
    """One loss on one set of inputs."""

    def __init__(
        self, loss: Loss[Any], trained: str, micro_batch: MicroBatch | None, name: str
    ) -> None:
        self.loss, self.trained, self.name = loss, trained, name
        self.micro_batch = micro_batch or self._without_model

    def _without_model(self, inputs: Any) -> Any:
        known = {f.name: getattr(inputs, f.name) for f in fields(inputs) if f.name != self.trained}
        return SimpleNamespace(**known)

    def run(self, inputs: Any) -> _Result:
        leaf = getattr(inputs, self.trained).detach().clone().requires_grad_()
        count = self.count(self.micro_batch(inputs))
        try:
            output = self.loss(replace(inputs, **{self.trained: leaf}))
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
        return _Result(count, output.total.detach(), stats, gradient)

    def count(self, micro_batch: Any) -> Tensor:
        try:
            count = self.loss.count(micro_batch)
        except AttributeError as error:
            raise AssertionError(
                f"{self.name}.count: {error}; count is called before the forward pass, so it may "
                "read masks (and ranks), never what the model computes"
            ) from error
        require(
            isinstance(count, Tensor) and count.dim() == 0,
            f"{self.name}.count should return a tensor of shape []",
        )
        return count

    def agree(self, found: _Result, wanted: _Result, what: str) -> None:
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


def check_loss(
    loss: Loss[Any],
    make_inputs: MakeInputs,
    *,
    trained: str | None = None,
    micro_batch: MicroBatch | None = None,
    seed: int = 0,
) -> None:
    """Check a loss of any seam against what the engine relies on.

    Finite total and gradient; a float32 total; padding (dirty, longer, or a whole row of it) and
    the order of rows change nothing; micro-batches add up to the whole in total, statistics,
    count and gradient, since all of them are sums; count reads masks only; inputs are not written
    to.

    Args:
        loss: the implementation.
        make_inputs: generator -> the loss's inputs: a dataclass with a field ``mask`` [B, W] and
            other tensors of that shape, at least 4 rows, some padding.
        trained: the field that holds the model's output; by default the first one.
        micro_batch: inputs -> what the engine passes to ``count``; by default all fields but
            the trained one.
        seed: of the inputs.

    Raises:
        AssertionError: with a sentence that says what broke and what would be right.
    """
    inputs = make_inputs(torch.Generator().manual_seed(seed))
    check = _LossCheck(loss, trained or fields(inputs)[0].name, micro_batch, named(loss))
    whole = check.run(_map(inputs, torch.clone))
    _plain(check, inputs, whole)
    _padding(check, inputs, whole)
    _rows(check, inputs, whole)
    _micro_batches(check, inputs, whole)


def _map(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return replace(inputs, **{f.name: change(getattr(inputs, f.name)) for f in fields(inputs)})


def _plain(check: _LossCheck, inputs: Any, whole: _Result) -> None:
    name = check.name
    finite(whole.total, f"{name}: total is {whole.total.item()} for ordinary inputs")
    finite(whole.gradient, f"{name}: the gradient is not finite for ordinary inputs")
    require(
        whole.total.dtype == torch.float32,
        f"{name}: total is {whole.total.dtype} for float32 inputs; it should stay float32",
    )
    require(whole.count.item() > 0, f"{name}: count is {whole.count.item()} for valid inputs")
    given = _map(inputs, torch.clone)
    check.agree(check.run(given), whole, "a second call with the same inputs")
    for f in fields(inputs):
        require(
            torch.equal(getattr(given, f.name), getattr(inputs, f.name)),
            f"{name} wrote into inputs.{f.name}; make a copy instead",
        )
    scaled = replace(inputs, **{check.trained: getattr(inputs, check.trained) + 1.0})
    require(
        check.count(check.micro_batch(scaled)).equal(whole.count),
        f"{name}: count depends on {check.trained}; it should depend on masks only",
    )


def _padding(check: _LossCheck, inputs: Any, whole: _Result) -> None:
    name, mask = check.name, inputs.mask
    require(
        bool((whole.gradient[~mask] == 0).all()),
        f"{name}: gradient flows into padding; apply inputs.mask before summing",
    )
    for garbage in GARBAGE:
        # Of opposite signs, so that a difference of two fields does not cancel.
        dirty = _map(inputs, lambda x: x if x is mask else dirtied(x, mask, -garbage))  # noqa: B023
        output = dirtied(getattr(inputs, check.trained), mask, garbage)
        dirty = replace(dirty, **{check.trained: output})
        check.agree(
            check.run(dirty),
            whole,
            f"{garbage} in the padding (use torch.where(mask, x, 0) before exp or a product: "
            "0 * NaN is NaN, also in the gradient)",
        )
    wide = check.run(_map(inputs, lambda x: widened(x, 3)))
    wide = replace(wide, gradient=wide.gradient[:, : mask.shape[1]])
    check.agree(wide, whole, "three more columns of padding (do not divide by the width)")
    empty = _map(inputs, lambda x: torch.cat([x, torch.zeros_like(x[:1])]))
    found = check.run(empty)
    finite(
        found.gradient,
        f"{name}: a row without valid places makes the gradient NaN; clamp what you divide by",
    )
    found = replace(found, gradient=found.gradient[:-1])
    check.agree(found, whole, "a row without valid places (it should add nothing)")


def _rows(check: _LossCheck, inputs: Any, whole: _Result) -> None:
    order = torch.arange(len(inputs.mask)).flip(0)
    found = check.run(_map(inputs, lambda x: x[order]))
    found = replace(found, gradient=found.gradient[order])
    check.agree(found, whole, "another order of the rows")


def _micro_batches(check: _LossCheck, inputs: Any, whole: _Result) -> None:
    for size in (1, 3):
        parts = [
            check.run(_map(inputs, lambda x: x[rows]))  # noqa: B023
            for rows in torch.arange(len(inputs.mask)).split(size)
        ]
        added = _Result(
            torch.stack([p.count for p in parts]).sum(),
            torch.stack([p.total for p in parts]).sum(),
            {key: torch.stack([p.stats[key] for p in parts]).sum() for key in whole.stats},
            torch.cat([p.gradient for p in parts]),
        )
        what = (
            f"adding up micro-batches of {size} (total and statistics are sums over what count "
            "counts, never means: the engine divides once)"
        )
        check.agree(added, whole, what)


def check_policy_loss(loss: Loss[PolicyLossInputs], *, seed: int = 0) -> None:
    """:func:`check_loss` for seam ``policy_loss``, with ratios inside and outside a clip range.

    Also: at ratio 1 with advantage 0, nothing pushes. ``count`` gets a PPOBatch, as from PPO.
    """
    check_loss(loss, _policy_inputs, micro_batch=_mask_only, seed=seed)
    check_loss(loss, _policy_inputs, micro_batch=_ppo_batch, seed=seed)
    inputs = _policy_inputs(torch.Generator().manual_seed(seed))
    _pushes_the_right_way(loss, inputs)


def _policy_inputs(generator: torch.Generator) -> PolicyLossInputs:
    mask = clean_masks(7, 5, generator)
    old = -3 * torch.rand((7, 5), generator=generator)
    logprobs = old + 0.3 * torch.randn((7, 5), generator=generator)
    return PolicyLossInputs(logprobs, old, torch.randn((7, 5), generator=generator), mask)


def _pushes_the_right_way(loss: Loss[PolicyLossInputs], inputs: PolicyLossInputs) -> None:
    """The first gradient of every published policy loss is the policy gradient's direction."""
    leaf = inputs.old_logprobs.clone().requires_grad_()
    advantages = torch.where(torch.arange(7)[:, None] % 2 == 0, 1.0, -1.0).expand(7, 5)
    total = loss(PolicyLossInputs(leaf, inputs.old_logprobs, advantages, inputs.mask)).total
    (gradient,) = torch.autograd.grad(total, leaf)
    require(
        bool((gradient * advantages <= 0).all()) and bool((gradient[inputs.mask] != 0).all()),
        f"{named(loss)}: at the policy that sampled, minimising total should raise the "
        "log-probability of tokens with positive advantage and lower the others; check the sign",
    )


def _mask_only(inputs: Any) -> Any:
    return SimpleNamespace(mask=inputs.mask)


def _ppo_batch(inputs: PolicyLossInputs | ValueLossInputs) -> PPOBatch:
    samples = made_up_samples([""] * len(inputs.mask))
    samples = replace(samples, response_tokens=inputs.mask.long(), response_mask=inputs.mask)
    zeros = torch.zeros(inputs.mask.shape)
    return PPOBatch(samples, zeros, zeros, zeros, zeros, samples.response_mask)


def check_value_loss(loss: Loss[ValueLossInputs], *, seed: int = 0) -> None:
    """:func:`check_loss` for seam ``value_loss``, with values near to and far from the old ones."""

    def make(generator: torch.Generator) -> ValueLossInputs:
        old, values, returns = torch.randn((3, 7, 5), generator=generator)
        return ValueLossInputs(old + 0.3 * values, old, returns, clean_masks(7, 5, generator))

    check_loss(loss, make, micro_batch=_mask_only, seed=seed)
    check_loss(loss, make, micro_batch=_ppo_batch, seed=seed)


def check_nll_loss(loss: Loss[NllInputs], *, seed: int = 0) -> None:
    """:func:`check_loss` for seam ``nll_loss``. ``count`` gets a TextBatch, as from the stages,

    whose ``mask`` [B, T] includes prompts; what the loss sums over is ``predicted`` [B, T-1].
    """

    def make(generator: torch.Generator) -> NllInputs:
        mask = clean_masks(7, 5, generator)
        mask[:, 0] &= torch.rand(7, generator=generator) > 0.5  # a prompt's token is no target
        return NllInputs(-3 * torch.rand((7, 5), generator=generator), mask)

    def texts(inputs: NllInputs) -> TextBatch:
        first = torch.ones((len(inputs.mask), 1), dtype=torch.bool)
        target = torch.cat([first, inputs.mask], 1)
        mask = target.flip(1).cumsum(1).flip(1) > 0
        return TextBatch(mask.long(), mask, target)

    inputs = make(torch.Generator().manual_seed(seed))
    check = _LossCheck(loss, "logprobs", None, named(loss))
    same(
        check.count(texts(inputs)),
        check.count(_mask_only(inputs)),
        f"{named(loss)}.count of a TextBatch should be that of NllInputs: use masks.predicted "
        "where there is one, since TextBatch.mask includes prompts and first tokens",
    )
    check_loss(loss, make, micro_batch=texts, seed=seed)
    check_loss(loss, make, seed=seed)


def check_preference_loss(loss: Loss[PreferenceInputs], *, seed: int = 0) -> None:
    """:func:`check_loss` for seam ``preference_loss``: K-way, with ties and prompts without pairs.

    Also: the order of a prompt's completions does not matter, nor what an unranked one (a negative
    rank) scores, scores as far apart as 1000 stay finite, and the loss falls as a better
    completion's score rises.
    """
    check_loss(loss, _preference_inputs, micro_batch=_comparisons, seed=seed)
    check_loss(loss, _preference_inputs, seed=seed)
    inputs = _preference_inputs(torch.Generator().manual_seed(seed))
    check = _LossCheck(loss, "scores", None, named(loss))
    whole = check.run(inputs)
    order = torch.tensor([2, 0, 3, 1])
    found = check.run(_map(inputs, lambda x: x[:, order]))
    found = replace(found, gradient=found.gradient[:, order.argsort()])
    check.agree(found, whole, "another order of a prompt's completions")
    far = check.run(replace(inputs, scores=inputs.scores * 1000))
    finite(
        torch.cat([far.total[None], far.gradient.flatten()]),
        f"{named(loss)}: scores 1000 apart give a loss or a gradient that is not finite; "
        "log(sigmoid(d)) is -inf below d = -104, use torch.nn.functional.logsigmoid",
    )
    mask = torch.ones((1, 2), dtype=torch.bool)
    pair = PreferenceInputs(torch.zeros((1, 2)), torch.tensor([[0, 1]]), mask)
    gradient = check.run(pair).gradient[0]
    require(
        gradient[0].item() < 0 < gradient[1].item(),
        f"{named(loss)}: minimising total should raise the score of rank 0 (the best) and lower "
        f"that of rank 1, but the gradient is {gradient.tolist()}; rank 0 is the best",
    )
    _unranked(check, inputs)


def _unranked(check: _LossCheck, inputs: PreferenceInputs) -> None:
    """A completion that nobody ranked counts as if it were not there."""
    partial = replace(inputs, ranks=inputs.ranks.clone())
    partial.ranks[0] = torch.tensor([1, -1, 0, 2])
    absent = replace(partial, mask=inputs.mask.clone())
    absent.mask[0, 1] = False
    check.agree(
        check.run(partial),
        check.run(absent),
        "a completion without a rank (a negative one: leave it out of every pair)",
    )


def _preference_inputs(generator: torch.Generator) -> PreferenceInputs:
    mask = clean_masks(7, 4, generator)
    mask[1:3] = torch.tensor([[True, True, True, False], [True, False, False, False]])
    ranks = torch.stack([torch.randperm(4, generator=generator) for _ in range(7)])
    ranks[1] = torch.tensor([1, 0, 1, 0])  # a tie
    ranks[3] = 0  # nothing but ties
    return PreferenceInputs(torch.randn((7, 4), generator=generator), ranks, mask)


def _comparisons(inputs: PreferenceInputs) -> ComparisonBatch:
    completions = [[[1] if exists else [] for exists in row] for row in inputs.mask.tolist()]
    texts = PackedTexts.of([[1]] * len(inputs.mask), completions, pad=0)
    return ComparisonBatch(texts, inputs.ranks, inputs.mask)

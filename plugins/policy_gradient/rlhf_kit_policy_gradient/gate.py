"""What must hold before the first PPO update; a setup that breaks it would train in silence.

Each check measures one number on a few samples of the untrained policy and compares it with a
bound. The bounds are those of the arithmetic: tight in float32, loose for half precision.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rlhf_kit.engine.scoring import score
from rlhf_kit.errors import NumericsError, RlhfKitError
from rlhf_kit.interfaces import (
    ModelReward,
    Policy,
    Reference,
    RewardFn,
    RewardOfParts,
    Tokenizer,
    ValueHead,
)
from rlhf_kit.types import PolicyOutput, Samples
from rlhf_kit.types.shapes import joined
from rlhf_kit_policy_gradient.parts import values_of

NO_SCORES = "the reward has no score for any of these responses each time"


@dataclass(frozen=True)
class Finding:
    """One check: what was measured, what is allowed, and what a failure means."""

    name: str
    measured: float | None  # None: there was nothing to compare, and nothing is judged
    allowed: float | None  # None: told, not judged
    meaning: str
    at_least: bool = False  # the bound is from below

    @property
    def holds(self) -> bool:
        if self.allowed is None or self.measured is None:
            return True
        if self.at_least:
            return self.measured >= self.allowed
        return self.measured <= self.allowed  # False for NaN

    @property
    def failure(self) -> str:
        bound = f"at {'least' if self.at_least else 'most'} {self.allowed:.3g}"
        return f"{self.name}: {self.measured:.3g}, should be {bound}: {self.meaning}"

    def __str__(self) -> str:
        if self.measured is None:
            return f"{self.name} not checked: {self.meaning}"
        return f"{self.name} {self.measured:.2g}"


@dataclass(frozen=True)
class Setup:
    """What the gate looks at. ``value`` is None where the estimator needs no values."""

    policy: Policy
    reference: Reference
    value: ValueHead | None
    reward: RewardFn
    tokenizer: Tokenizer
    samples: Samples  # a few, of the untrained policy
    same_reference: bool  # the declared reference is where the policy starts
    micro_batch: int


def check_setup(setup: Setup, skip: list[str]) -> list[Finding]:
    """Every finding; raises NumericsError, naming all that failed, when one does not hold."""
    found = [finding for check in _CHECKS if check not in skip for finding in _CHECKS[check](setup)]
    failed = [f for f in found if not f.holds]
    if failed:
        lines = [f.failure for f in failed]
        raise NumericsError(
            "the gate before the first update stopped the run; nothing was trained. "
            + "; ".join(lines)
            + f". If this is meant to be, write gate.skip: [{', '.join(f.name for f in failed)}]"
        )
    return found


def _exact(out: PolicyOutput) -> bool:
    return out.states.dtype in (torch.float32, torch.float64)


def _bound(out: PolicyOutput) -> float:
    """For log-probabilities and values, which sum many roundings of the model's precision."""
    return 1e-3 if _exact(out) else 0.1


def _gap(a: Tensor, b: Tensor, mask: Tensor | None = None) -> float:
    """The largest difference where ``mask``; NaN if either has one there."""
    gap = (a.float() - b.float()).abs()
    gap = gap if mask is None else gap[mask]
    return gap.max().item() if gap.numel() else 0.0


def _rounded_gap(out: PolicyOutput, a: Tensor, b: Tensor, mask: Tensor | None = None) -> float:
    """The largest difference where ``mask``; in half precision the mean of them.

    Another width or batch size means other kernels, and one unlikely token in a hundred is then
    off by a few tenths of a nat in bfloat16; a real fault moves all of them.
    """
    if _exact(out):
        return _gap(a, b, mask)
    gap = (a.float() - b.float()).abs()
    gap = gap if mask is None else gap[mask]
    return gap.mean().item() if gap.numel() else 0.0


@torch.no_grad()
def _reference(setup: Setup) -> Iterator[Finding]:
    own = setup.policy.evaluate(setup.samples)
    reference = setup.reference.evaluate(setup.samples)
    mask = setup.samples.response_mask
    if setup.same_reference:
        yield Finding(
            "reference",
            _gap(own.logprobs, reference.logprobs, mask),
            _bound(own) / 10,
            "largest difference of log-probabilities between the policy and its KL reference, "
            "which start from the same weights",
        )
    else:
        kl = torch.where(mask, own.logprobs - reference.logprobs, 0.0).sum(1).mean().item()
        yield Finding("reference", kl, None, "KL at the start, to a reference of its own")


@torch.no_grad()
def _sampled(setup: Setup) -> Iterator[Finding]:
    """Recomputed from the tokens, without what sampling has captured on the way."""
    samples, mask = setup.samples, setup.samples.response_mask
    drawn = samples.sampled_logprobs
    if drawn is None:
        return
    fresh = setup.policy.evaluate(replace(samples, trunk=None))
    captured = setup.policy.evaluate(samples)
    gaps = [_rounded_gap(out, out.logprobs, drawn, mask) for out in (fresh, captured)]
    yield Finding(
        "sampled",
        max(gaps),
        _bound(fresh),
        "difference between the log-probabilities that tokens were drawn with and those they are "
        "scored with: the policy is not scored on what it samples",
    )


def _ratio(setup: Setup) -> Iterator[Finding]:
    with torch.no_grad():
        old = setup.policy.evaluate(setup.samples)
    size = min(setup.micro_batch, max(1, len(setup.samples) // 2))
    new = joined([setup.policy.evaluate(m).logprobs.detach() for m in setup.samples.split(size)])
    mask = setup.samples.response_mask
    yield Finding(
        "ratio",
        _rounded_gap(old, (new - old.logprobs).exp(), torch.ones_like(new), mask),
        _bound(old),
        "the probability ratio of PPO is not 1 although nothing was trained",
    )


@torch.no_grad()
def _reward(setup: Setup) -> Iterator[Finding]:
    first = score(setup.reward, setup.samples)
    whole, known = first.total, first.known
    why = "a score changes with padding or with the other rows of its batch"
    states = setup.policy.evaluate(setup.samples)
    try:
        rows = torch.arange(len(setup.samples))
        parts = [setup.samples.select(some) for some in (rows[:1], rows[1:])]
        apart = [score(setup.reward, part) for part in parts]
        alone = torch.cat([found.total for found in apart])
        padded = score(setup.reward, widened(setup.samples))
        known = known & torch.cat([found.known for found in apart]) & padded.known
        if not known.any():
            yield Finding("reward", None, None, NO_SCORES)
            return
        gap = max(_rounded_gap(states, whole, x, known) for x in (alone, padded.total))
    except RlhfKitError as error:  # such as a deviation of one score
        gap, why = math.inf, f"{why}: {error}"
    bound = max(_bound(states), _precision_of(setup.reward))
    yield Finding("reward", gap, bound * max(1.0, whole.abs().max().item()), why)


@torch.no_grad()
def _padding(setup: Setup) -> Iterator[Finding]:
    samples, mask = setup.samples, setup.samples.response_mask
    own, wide = setup.policy.evaluate(samples), setup.policy.evaluate(widened(samples))
    gap = _rounded_gap(own, own.logprobs, wide.logprobs[:, : mask.shape[1]], mask)
    if setup.value is not None:
        values = values_of(setup.value, own.states, samples)
        others = values_of(setup.value, wide.states, widened(samples))[:, : mask.shape[1]]
        scale = max(1.0, values.abs().max().item())
        gap = max(gap, _rounded_gap(own, values, others, mask) / scale)
    yield Finding(
        "padding", gap, _bound(own), "log-probabilities or values change with the padding"
    )


@torch.no_grad()
def _end(setup: Setup) -> Iterator[Finding]:
    best = 0.0
    lengths, ends = setup.samples.response_mask.sum(1), setup.tokenizer.end_ids
    for part, end in itertools.product((0.0, 0.5, 1.0), ends):
        place = ((lengths - 1) * part).long()  # [B]
        ended = _ending_at(setup.samples, place, end)
        logprobs = setup.policy.evaluate(ended).logprobs
        best = max(best, logprobs.gather(1, place[:, None]).exp().max().item())
    yield Finding(
        "end",
        best,
        1e-6,
        f"the largest probability of an end token ({', '.join(map(str, ends))}) at any place "
        "tried: no response would ever end; name the token that this model ends its answers with "
        "in model.end_tokens",
        at_least=True,
    )


def _ending_at(samples: Samples, place: Tensor, end: int) -> Samples:
    """Each response cut before ``place`` [B] and ended there."""
    columns = torch.arange(samples.response_tokens.shape[1], device=place.device)[None]
    tokens = torch.where(columns == place[:, None], end, samples.response_tokens)
    # The captured trunk belongs to the tokens that were sampled.
    return replace(
        samples, response_tokens=tokens, response_mask=columns <= place[:, None], trunk=None
    )


def _models_of(reward: RewardFn) -> Iterator[ModelReward]:
    """It, or those it is made of, as far as they say what they compute with."""
    if isinstance(reward, ModelReward):
        yield reward
    for part in reward.parts.values() if isinstance(reward, RewardOfParts) else ():
        yield from _models_of(part)


def _precision_of(reward: RewardFn) -> float:
    """The bound for a reward that may compute in another precision than the policy."""
    low = (torch.bfloat16, torch.float16)
    return 0.1 if any(model.dtype in low for model in _models_of(reward)) else 1e-3


def _tokenizers(setup: Setup) -> Iterator[Finding]:
    changed: list[str] = []  # by the worst of them
    others = (model.tokenizer for model in _models_of(setup.reward))
    # A stranger's reward may call a tokenizer of another library so.
    for tokenizer in (setup.tokenizer, *(t for t in others if isinstance(t, Tokenizer))):
        found = [
            text
            for text in setup.samples.responses
            if tokenizer.decode(tokenizer.response(text, finished=False)) != text
        ]
        changed = max(changed, found, key=len)
    shown = f", such as {changed[0][:60]!r}" if changed else ""
    yield Finding(
        "tokenizers",
        float(len(changed)),
        float(len(setup.samples) // 4),  # one odd sample may be normalised; a fault hits all
        f"responses whose text changes when a tokenizer reads and writes it{shown}",
    )


@torch.no_grad()
def _repeatable(setup: Setup) -> Iterator[Finding]:
    with torch.enable_grad():  # dropout, where a model has it, is on while it trains
        outs = [_numbers(setup) for _ in range(2)]
    gap = max(_gap(a, b, setup.samples.response_mask) for a, b in zip(*outs, strict=True))
    first, second = (score(setup.reward, setup.samples) for _ in range(2))
    known = first.known & second.known
    if not known.any():
        yield Finding("repeatable/reward", None, None, NO_SCORES)
    yield Finding(
        "repeatable",
        max(gap, _gap(first.total, second.total, known)),
        _bound(setup.policy.evaluate(setup.samples)) / 10,
        "the same call twice gives other numbers: dropout is on, or a reward is random",
    )


def _numbers(setup: Setup) -> list[Tensor]:
    """Log-probabilities and values; the graph is gone when this returns."""
    out = setup.policy.evaluate(setup.samples)
    found = [out.logprobs.detach()]
    if setup.value is not None:
        found.append(values_of(setup.value, out.states, setup.samples).detach())
    return found


def widened(samples: Samples, left: int = 2, right: int = 3) -> Samples:
    """The same samples with more padding on both sides, and garbage in all of the padding."""
    prompts, mask = samples.prompts, samples.response_mask
    first = samples.response_tokens[:, 0]
    # A policy may sample the very token that padding is made of.
    filling = torch.cat([prompts.tokens[~prompts.mask], samples.response_tokens[~mask]])
    others = first[~torch.isin(first, filling)]
    garbage = int((others if len(others) else first).max())

    def around(x: Tensor, before: int, after: int, fill: Any) -> Tensor:
        shape = list(x.shape)
        ends = [x.new_full((shape[0], n, *shape[2:]), fill) for n in (before, after)]
        return torch.cat([ends[0], x, ends[1]], 1)

    tokens = torch.where(mask, samples.response_tokens, garbage)
    begins = torch.where(prompts.mask, prompts.tokens, garbage)
    return replace(
        samples,
        prompts=replace(
            prompts,
            tokens=around(begins, left, 0, garbage),
            mask=around(prompts.mask, left, 0, False),
        ),
        response_tokens=around(tokens, 0, right, garbage),
        response_mask=around(mask, 0, right, False),
        sampled_logprobs=None,
    )


_CHECKS = {
    "reference": _reference,
    "sampled": _sampled,
    "ratio": _ratio,
    "reward": _reward,
    "padding": _padding,
    "end": _end,
    "tokenizers": _tokenizers,
    "repeatable": _repeatable,
}

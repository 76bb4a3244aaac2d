"""Calling a reward and not trusting what it returns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_kit.engine.foreign import first_call, foreign, in_words, shape_of, untouched
from rlhf_kit.errors import NumericsError, PluginError
from rlhf_kit.interfaces import (
    CompositeReward,
    Labeler,
    Labels,
    Memory,
    NeedsModels,
    RewardFn,
    RewardOfParts,
)
from rlhf_kit.origins import Whose
from rlhf_kit.types import PartialScores, Prompts, Row, Samples


class Scores(NamedTuple):
    """What a reward says of B samples; every score is finite, and 0 where there is none."""

    total: Tensor  # [B] float32
    components: dict[str, Tensor]  # name -> [B], of a composite reward
    tokens: Tensor | None  # [B, R] float32 of a reward that scores tokens; total is their sum
    known: Tensor  # [B] bool: which responses have a score
    counts: dict[str, float]  # what the reward met on the way, for the metrics

    def known_or_none(self) -> list[float | None]:
        """[B], as JSON has it: exact, since a float64 holds a float32; None where there is none."""
        pairs = zip(self.total.tolist(), self.known.tolist(), strict=True)
        return [x if there else None for x, there in pairs]

    def counted(self, name: str) -> dict[str, float]:
        """The counts as metrics: ``name/retries``, say."""
        return {f"{name}/{what}": count for what, count in self.counts.items()}


def _shaped(scores: Any, samples: Samples, name: object) -> Tensor:
    """[B] or [B, R] float32, where the samples are."""
    if not isinstance(scores, Tensor):
        try:
            scores = torch.as_tensor(scores, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise NumericsError(
                f"{name}: expected one number per response, got {in_words(scores)} ({error})"
            ) from error
    mask = samples.response_mask
    if scores.shape not in ((len(samples),), mask.shape):
        raise NumericsError(
            f"{name}: expected one score per response, shape [{len(samples)}], or per token, "
            f"{list(mask.shape)}; got {list(scores.shape)}"
        )
    return scores.float().to(mask.device)


def _checked(scores: Tensor, samples: Samples, name: object) -> Tensor:
    """Finite, and 0 in the padding."""
    if scores.dim() > 1:
        scores = torch.where(samples.response_mask, scores, 0.0)
    bad = (~torch.isfinite(scores)).nonzero().tolist()
    if bad:
        row, *token = bad[0]
        at = f", token {token[0]}," if token else ""
        raise NumericsError(
            f"{name}: score {scores[tuple(bad[0])].item()} for response {row}{at} of "
            f"{len(samples)} ({samples.responses[row][:60]!r}); scores must be finite"
        )
    return scores


def _counted(counts: Any, name: object) -> dict[str, float]:
    """What a part has counted, by names."""
    if not isinstance(counts, Mapping) or not all(map(_is_count, counts.items())):
        raise PluginError(
            f"{name}: counts are {in_words(counts)}; they should be finite numbers by their names"
        )
    return {key: float(count) for key, count in counts.items()}


def _is_count(item: tuple[Any, Any]) -> bool:
    key, count = item
    return isinstance(key, str) and isinstance(count, Real) and math.isfinite(count)


def _partial(found: Any, samples: Samples, name: object) -> PartialScores:
    """What a reward has returned, checked, and 0 where there is no score."""
    if not isinstance(found, PartialScores):
        scores = _checked(_shaped(found, samples, name), samples, name)
        return PartialScores(scores, scores.new_ones(len(samples), dtype=torch.bool))
    known = found.known
    right = isinstance(known, Tensor) and known.dtype == torch.bool
    if not right or known.shape != (len(samples),):
        kind = f"{known.dtype}, " if isinstance(known, Tensor) else ""
        raise PluginError(
            f"{name}: known is {kind}{shape_of(known)}; it should be bool, one per response, "
            f"[{len(samples)}]"
        )
    scores = _shaped(found.scores, samples, name)
    known = known.to(scores.device)
    there = known.view(-1, *[1] * (scores.dim() - 1))
    scores = _checked(torch.where(there, scores, 0.0), samples, name)
    return PartialScores(scores, known, _counted(found.counts, name))


def combined(
    reward: CompositeReward, components: Mapping[str, Tensor | PartialScores]
) -> Tensor | PartialScores:
    """What ``reward`` makes of ``components``: of a response that one has no score of, nothing."""
    partial = {n: x for n, x in components.items() if isinstance(x, PartialScores)}
    scores = {n: x.scores if isinstance(x, PartialScores) else x for n, x in components.items()}
    total = reward.combine(scores)
    if not partial:
        return total
    known = torch.stack([x.known.cpu() for x in partial.values()]).all(0)
    counts = {f"{n}/{key}": count for n, x in partial.items() for key, count in x.counts.items()}
    return PartialScores(total, known, counts)


def _summed(scores: Tensor) -> Tensor:
    """[B], or [B, R] -> [B]."""
    return scores.sum(1) if scores.dim() > 1 else scores


@torch.no_grad()
def score(reward: RewardFn, samples: Samples, name: str = "reward") -> Scores:
    """The scores of ``samples`` and, for a composite reward, of each component.

    Raises:
        NumericsError: wrong shape, or a score that is not finite.
    """
    components: dict[str, PartialScores] = {}
    who = Whose(reward, name)
    with foreign(who), untouched(samples, "samples", who, first_call(reward)):
        if isinstance(reward, CompositeReward):
            found = reward.components(samples).items()
            components = {key: _partial(x, samples, Whose(reward, name, key)) for key, x in found}
            whole = _partial(combined(reward, components), samples, who)
        else:
            whole = _partial(reward(samples), samples, who)
    sums = {key: _summed(x.scores) for key, x in components.items()}
    scores = whole.scores
    tokens = scores if scores.dim() > 1 else None
    return Scores(_summed(scores), sums, tokens, whole.known, dict(whole.counts))


def summed(counts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """What rewards have counted, name by name, added up."""
    total: dict[str, float] = {}
    for each in counts:
        for name, count in each.items():
            total[name] = total.get(name, 0.0) + count
    return total


@torch.no_grad()
def scores_of(reward: RewardFn, samples: Samples, name: str = "reward") -> Tensor | PartialScores:
    """[B] or [B, R] float32: what ``reward`` returns, for who makes a reward of several.

    Raises:
        NumericsError: wrong shape, or a score that is not finite.
    """
    who = Whose(reward, name)
    with foreign(who), untouched(samples, "samples", who, first_call(reward)):
        found = reward(samples)
        checked = _partial(found, samples, who)
    return checked if isinstance(found, PartialScores) else checked.scores


def needs_models(part: Any) -> bool:
    """Whether ``part`` cannot work before weights may be loaded (see NeedsModels)."""
    return isinstance(part, NeedsModels) and part.needs_models


def load_models(part: Any, memory: Memory) -> None:
    """Let a part that needs models load them."""
    if isinstance(part, NeedsModels) and part.needs_models:
        with foreign(Whose(part, type(part).__name__, "load")):
            part.load(memory)


def try_out(reward: RewardFn, rows: Sequence[Row], name: str = "reward") -> Scores | None:
    """Call a reward on two made-up answers to real rows, so that a broken one is found early.

    Returns:
        Its scores; None of a reward that needs models, which is left for later.

    Raises:
        NumericsError: wrong shape, or a score that is not finite.
    """
    if isinstance(reward, RewardOfParts):
        for key, part in reward.parts.items():
            try_out(part, rows, f"{name}.{key}")
    return None if needs_models(reward) else score(reward, _made_up(rows), name)


def try_out_labeler(labeler: Labeler, rows: Sequence[Row]) -> None:
    """The same for a labeler: it must rank two made-up answers without an error."""
    if not needs_models(labeler):
        ranked(labeler, _made_up(rows))


@torch.no_grad()
def ranked(labeler: Labeler, samples: Samples) -> Labels:
    """What a labeler says of ``samples``; it may leave out counts, and scores.

    Raises:
        PluginError: it says something else.
        NumericsError: a score is not finite.
    """
    who = Whose(labeler, "labeler")
    with foreign(who), untouched(samples, "samples", who, first_call(labeler)):
        found = labeler(samples)
        if not isinstance(found, tuple) or not 1 <= len(found) <= len(Labels._fields):
            raise PluginError(
                f"{who} returned {type(found).__name__}; it should return (ranks, scores)"
            )
        ranks, scores, counts = Labels(*found)
        ranks = [*ranks]
        scores = None if scores is None else [None if x is None else float(x) for x in scores]
        counts = _counted(counts, who)
    whole = all(x is None or (isinstance(x, int) and not isinstance(x, bool)) for x in ranks)
    if len(ranks) != len(samples) or not whole or any(x is not None and x < 0 for x in ranks):
        raise PluginError(
            f"{who} returned ranks {in_words(ranks)}; they should be {len(samples)} integers, "
            "0 the best of its group"
        )
    if scores is not None and len(scores) != len(samples):
        raise PluginError(f"{who} returned {len(scores)} scores of {len(samples)} samples")
    bad = [x for x in scores or () if x is not None and not math.isfinite(x)]
    if bad:
        raise NumericsError(f"{who}: a score is {bad[0]}; scores must be finite")
    return Labels(ranks, scores, counts)


def _made_up(rows: Sequence[Row]) -> Samples:
    rows = [*rows[:2], *rows[: max(0, 2 - len(rows))]]
    # Of three tokens: with one, a column [B, 1] by mistake would pass for a score per token.
    one, three = torch.ones((len(rows), 1)).long(), torch.ones((len(rows), 3)).long()
    return Samples(
        Prompts(one, one.bool(), rows, torch.zeros(len(rows)).long(), torch.arange(len(rows))),
        three,
        three.bool(),
        finished=torch.ones(len(rows), dtype=torch.bool),
        temperature=1.0,
        decode=lambda tokens: "This is an answer.",
    )

"""Conformance of rewards, advantage estimators, normalisers, labelers and controllers.

Every function raises AssertionError with a sentence for the author: what broke, and what would be
right. The checks of losses are in ``losses``, those of declarations in ``components``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from rlhf_kit.interfaces import (
    AdvantageEstimator,
    CompositeReward,
    InvertibleNormalizer,
    Labeler,
    Labels,
    Normalizer,
    RewardFn,
    Stateful,
)
from rlhf_kit.ops.sequence import with_place_after_end
from rlhf_kit.testing.compare import (
    GARBAGE,
    clean_masks,
    dirtied,
    finite,
    float32,
    same,
    widened,
)
from rlhf_kit.testing.inputs import made_up_experience
from rlhf_kit.testing.losses import map_places, map_rows
from rlhf_kit.testing.sentences import declared, named, require
from rlhf_kit.testing.toy import made_up_samples
from rlhf_kit.types import Advantages, Experience, PartialScores, Samples


def check_reward(
    reward: RewardFn, samples: Samples | None = None, *, rowwise: bool = True
) -> Tensor:
    """Check a reward: float32 scores [B], finite, of the response and nothing else.

    Padding (other token ids in it, more of it) and the order of rows change nothing; a second call
    and, if ``rowwise``, scoring in micro-batches give the same scores. For a composite reward,
    ``combine(components(samples))`` is what ``__call__`` returns.

    Args:
        reward: the implementation, with its models loaded if it needs any.
        samples: what to score; by default :func:`made_up_samples`. Give your own, for example
            ``made_up_samples(responses, rows)``, when the reward reads keys of the source rows.
        rowwise: whether a score depends on its own response only. False for rewards that compare
            the responses of a batch.

    Returns:
        The scores [B], for further checks.
    """
    name, samples = named(reward), samples if samples is not None else made_up_samples()

    def score(batch: Samples) -> Tensor:
        with torch.no_grad():
            scores = _plain(reward(batch))
        float32(scores, [len(batch)], f"{name}: the scores")
        bad = (~torch.isfinite(scores)).nonzero().flatten().tolist()
        if bad:
            raise AssertionError(
                f"{name}: score {scores[bad[0]].item()} for response "
                f"{batch.responses[bad[0]][:60]!r}; scores must be finite, also for empty and "
                "unusual responses"
            )
        return scores.cpu()

    whole = score(samples)
    before = samples.response_tokens.clone(), samples.response_mask.clone()
    same(score(samples), whole, f"{name}: a second call gave other scores; seed what is random")
    require(
        torch.equal(samples.response_tokens, before[0])
        and torch.equal(samples.response_mask, before[1]),
        f"{name} wrote into the samples; make a copy instead",
    )
    other = _letters_in_padding(samples)
    fix = "read samples.responses, or apply samples.response_mask to the tokens"
    same(score(other), whole, f"{name}: other tokens in the padding changed a score; {fix}")
    same(score(_longer(other)), whole, f"{name}: more padding changed a score; {fix}")
    order = torch.arange(len(samples)).flip(0)
    same(
        score(samples.select(order))[order],
        whole,
        f"{name}: another order of the rows changed scores; score i should belong to response i",
    )
    if rowwise:
        for size in (1, 2):
            same(
                torch.cat([score(part) for part in samples.split(size)]),
                whole,
                f"{name}: scoring {size} responses at a time changed a score; a score should "
                "depend on its own row only (rowwise=False if it is meant to compare rows)",
            )
    if isinstance(reward, CompositeReward):
        _components(reward, samples, whole)
    return whole


def _plain(found: Tensor | PartialScores) -> Tensor:
    """The scores, 0 where there is none."""
    if not isinstance(found, PartialScores):
        return found
    return torch.where(found.known, found.scores, 0.0)


def _letters_in_padding(samples: Samples) -> Samples:
    """The same samples with a valid token id, not the pad id, in all padding."""
    prompts, mask = samples.prompts, samples.response_mask
    letter = int(samples.response_tokens[mask].max())
    return replace(
        samples,
        response_tokens=torch.where(mask, samples.response_tokens, letter),
        prompts=replace(prompts, tokens=torch.where(prompts.mask, prompts.tokens, letter)),
    )


def _longer(samples: Samples) -> Samples:
    tokens, mask = samples.response_tokens, samples.response_mask
    more = torch.cat([tokens, tokens[:, :1].expand(-1, 3)], 1)
    return replace(samples, response_tokens=more, response_mask=widened(mask, 3))


def _components(reward: CompositeReward, samples: Samples, whole: Tensor) -> None:
    name, found = named(reward), reward.components(samples)
    require(isinstance(found, Mapping), f"{name}.components should return name -> [B]")
    components = {key: _plain(value) for key, value in found.items()}
    for key, value in components.items():
        float32(value, [len(samples)], f"{name}: component {key!r}")
        finite(value, f"{name}: component {key!r} is not finite")
    same(
        reward.combine(components).cpu(),
        whole,
        f"{name}: combine(components(samples)) should be what a call returns",
    )


def check_advantage(
    estimator: AdvantageEstimator, *, needs: Collection[str] = (), seed: int = 0
) -> None:
    """Check an advantage estimator: float32 [B, R], finite, zero in the padding.

    Padding (dirty or longer), the order of the rows and the numbers of the groups change nothing;
    the experience is not written to. The rewards come in groups of three responses to one prompt,
    the members of a group apart from each other, and most rows have a place after their end.
    ``needs`` are its component's: without "values" it gets ``values=None``, and with it other
    values must give something else; only with "scores" may it leave the rewards unread, and only
    with "groups" compare the responses to one prompt.
    """
    name = named(estimator)
    declared("advantage", name, needs)
    given = _experience(torch.Generator().manual_seed(seed), with_values="values" in needs)
    whole = _credited(estimator, given, "ordinary inputs")

    def agree(found: tuple[Tensor, Tensor], what: str) -> None:
        for part, x, y in zip(("advantages", "returns"), found, whole, strict=True):
            same(x, y, f"{name}: {what} changed {part}")

    what = "a second call with the same inputs"
    agree(_credited(estimator, given, what), what)
    for garbage in GARBAGE:
        what = f"{garbage} in the padding of rewards, values and log-probabilities"
        hint = " (mask the reward, the next value and what is carried from later tokens)"
        agree(_credited(estimator, _dirty(given, garbage), what), what + hint)
    what = "three more columns of padding"
    wide = _credited(estimator, map_places(given, lambda x: widened(x, 3)), what)
    agree((wide[0][:, :5], wide[1][:, :5]), what)
    what, order = "another order of the rows", torch.tensor([8, 2, 5, 0, 1, 7, 6, 3, 4])
    found = _credited(estimator, map_rows(given, lambda x: x[order]), what)
    back = order.argsort()
    hint = " (rows of a group need not be neighbours: go by group)"
    agree((found[0][back], found[1][back]), what + hint)
    what = "other numbers for the same groups"
    agree(_credited(estimator, replace(given, group=100 - 7 * given.group), what), what)
    if given.values is not None:
        other = _credited(estimator, replace(given, values=given.values + 1.0), "other values")[0]
        require(
            not torch.equal(other, whole[0]),
            f'{name}: other values give the same advantages; take "values" out of its '
            "component's needs, or a critic is trained for nothing",
        )
    _reads_what_it_says(estimator, given, whole[0], needs)


def _reads_what_it_says(
    estimator: AdvantageEstimator, given: Experience, wanted: Tensor, needs: Collection[str]
) -> None:
    name = named(estimator)

    def moved(what: str, **changed: Tensor) -> bool:
        return not torch.equal(_credited(estimator, replace(given, **changed), what)[0], wanted)

    if "scores" not in needs:
        other = torch.where(given.places, given.rewards.flip(0) + 0.5, 0.0)
        require(
            moved("other rewards", rewards=other)
            or not moved("other scores", scores=given.scores.flip(0) + 0.5),
            f'{name}: it reads scores and no rewards; add "scores" to its component\'s needs, or '
            "a KL penalty, which is in the rewards, is paid by nobody",
        )
    if "groups" not in needs:
        require(
            not moved("one response to each prompt", group=torch.arange(len(given.group))),
            f'{name}: other groups give other advantages; add "groups" to its component\'s needs, '
            "or it may meet one response to each prompt",
        )


def _experience(generator: torch.Generator, *, with_values: bool) -> Experience:
    mask = clean_masks(9, 5, generator)
    places = with_place_after_end(mask)
    rewards, values, old, reference = torch.randn((4, 9, 5), generator=generator)
    made_up = made_up_experience(
        torch.where(places, rewards, 0.0),
        mask,
        values=values if with_values else None,
        group=torch.arange(9) % 3,
        logprobs=-old.abs(),
        reference_logprobs=-reference.abs(),
    )
    return replace(made_up, scores=made_up.rewards.sum(1), places=places)


def _dirty(given: Experience, garbage: float) -> Experience:
    """Garbage of opposite signs, so that a difference of two fields does not cancel."""
    return replace(
        given,
        rewards=dirtied(given.rewards, given.places, garbage),
        values=None if given.values is None else dirtied(given.values, given.places, garbage),
        logprobs=dirtied(given.logprobs, given.mask, garbage),
        reference_logprobs=dirtied(given.reference_logprobs, given.mask, -garbage),
    )


def _credited(estimator: AdvantageEstimator, given: Experience, what: str) -> tuple[Tensor, Tensor]:
    """Advantages and returns, both [B, R]."""
    name, passed = named(estimator), map_rows(given, torch.clone)
    try:
        out = estimator(passed)
    except Exception as error:
        hint = "; values is None, since needs does not have 'values'"
        raise AssertionError(
            f"{name} raised {type(error).__name__}: {error} "
            f"({what}{hint if given.values is None else ''})"
        ) from error
    require(isinstance(out, Advantages), f"{name} should return rlhf_kit.types.Advantages")
    for f in fields(given):
        before, after = getattr(given, f.name), getattr(passed, f.name)
        require(
            before is None or torch.equal(before.nan_to_num(), after.nan_to_num()),
            f"{name} wrote into experience.{f.name}; make a copy instead",
        )
    for part, x in (("advantages", out.advantages), ("returns", out.returns)):
        float32(x, list(given.mask.shape), f"{name}: {part}")
        finite(x, f"{name}: {part} are not finite ({what})")
        require(not x.requires_grad, f"{name}: {part} should carry no gradient")
        require(
            bool((x[~given.places] == 0).all()),
            f"{name}: {part} should be 0 where experience.places is False ({what})",
        )
    return out.advantages, out.returns


def check_normalizer(normalizer: Normalizer, *, seed: int = 0) -> None:
    """Check a normaliser: float32 of the same shape [B] or [B, R], finite, zero outside the mask.

    What stands outside the mask and how much of it there is change nothing, nor does the order of
    the rows; neither values that are all equal, nor a mask without a place, give NaN. One that
    keeps statistics is Stateful and goes on exactly after ``load_state_dict(state_dict())``; one
    that keeps none gives the same twice. For an invertible one, the kind that values need,
    ``denormalize`` undoes ``normalize``, and ``normalize`` is the identity before the first
    ``update``.

    Args:
        normalizer: the implementation, as it is built; copies of it are used.
        seed: of the inputs.
    """
    generator = torch.Generator().manual_seed(seed)
    mask = clean_masks(7, 5, generator)
    first, second = 3.0 + 2.0 * torch.randn((2, 7, 5), generator=generator)
    name = named(normalizer)

    def make() -> Normalizer:
        return copy.deepcopy(normalizer)

    def after_one() -> Normalizer:
        """One that has seen a rollout before."""
        used = make()
        _normalised(used, second, mask, "ordinary inputs")
        return used

    whole = _normalised(after_one(), first, mask, "ordinary inputs")
    for x in (first[:, 0], second[0]):
        _normalised(make(), x, torch.ones_like(x, dtype=torch.bool), "scores [B]")
    for garbage in GARBAGE:
        what = f"{garbage} outside the mask"
        found = _normalised(after_one(), dirtied(first, mask, garbage), mask, what)
        same(found, whole, f"{name}: {what} changed the result (apply the mask before a sum)")
    what = "three more columns of padding"
    found = _normalised(after_one(), widened(first, 3), widened(mask, 3), what)
    same(found[:, :5], whole, f"{name}: {what} changed the result")
    found = _normalised(after_one(), first.flip(0), mask.flip(0), "another order of the rows")
    same(found.flip(0), whole, f"{name}: another order of the rows changed the result")
    _normalised(make(), torch.full_like(first, 3.0), mask, "values that are all equal")
    used = make()
    _normalised(used, first, torch.zeros_like(mask), "a mask without a place")
    _normalised(used, first, mask, "ordinary inputs after a mask without a place")
    _memory_of_normalizer(after_one, first, mask)
    if isinstance(normalizer, InvertibleNormalizer):
        _inverse(make, first, second, mask)


def _normalised(normalizer: Normalizer, x: Tensor, mask: Tensor, what: str) -> Tensor:
    name, given = named(normalizer), (x.clone(), mask.clone())
    try:
        found = normalizer(*given)
    except Exception as error:
        raise AssertionError(f"{name} raised {type(error).__name__}: {error} ({what})") from error
    unwritten = torch.equal(given[0].nan_to_num(), x.nan_to_num()) and torch.equal(given[1], mask)
    require(unwritten, f"{name} wrote into its inputs; make a copy instead")
    float32(found, list(x.shape), f"{name}: the result")
    finite(found, f"{name}: the result is not finite ({what})")
    require(
        bool((found[~mask] == 0).all()), f"{name}: the result should be 0 outside the mask ({what})"
    )
    return found


def _memory_of_normalizer(after_one: Callable[[], Normalizer], x: Tensor, mask: Tensor) -> None:
    """A second call may differ from the first only through state that a checkpoint holds."""
    straight, resumed = after_one(), after_one()
    name = named(straight)
    once = straight(x, mask)
    if not isinstance(straight, Stateful):
        same(
            straight(x, mask),
            once,
            f"{name}: a second call with the same inputs gave another result; what remembers "
            "should have state_dict and load_state_dict, or it forgets on resume",
        )
        return
    assert isinstance(resumed, Stateful)
    resumed(x, mask)
    state = copy.deepcopy(resumed.state_dict())
    for _ in range(3):  # what happens after the checkpoint must be undone
        resumed(100.0 - x, mask)
    resumed.load_state_dict(state)
    require(
        torch.equal(resumed(x, mask), straight(x, mask)),
        f"{name}: after load_state_dict the result is another; put all state into state_dict",
    )


def _inverse(make: Callable[[], Normalizer], first: Tensor, second: Tensor, mask: Tensor) -> None:
    normalizer: Any = make()
    name = named(normalizer)
    for when, x in (("before the first update", None), ("", first), ("", second)):
        if x is not None:
            normalizer.update(x, mask)
        there = normalizer.normalize(first)
        float32(there, list(first.shape), f"{name}.normalize: the result")
        back = normalizer.denormalize(there)
        float32(back, list(first.shape), f"{name}.denormalize: the result")
        same(back, first, f"{name}: denormalize(normalize(x)) should be x {when}".rstrip())
        if x is None:
            same(there, first, f"{name}: normalize should change nothing {when}")
    dirty: Any = make()
    for x in (first, second):
        dirty.update(dirtied(x, mask, math.nan), mask)
    same(
        dirty.normalize(first),
        normalizer.normalize(first),
        f"{name}: NaN outside the mask reached the statistics of update",
    )


def check_labeler(labeler: Labeler, samples: Samples | None = None) -> None:
    """Check a labeler: one rank per response, 0 the best of its group, better scores not behind.

    The order of the rows changes nothing. By default three responses answer each prompt.
    """
    name = named(labeler)
    samples = samples if samples is not None else made_up_samples(samples_per_prompt=3)

    def label(batch: Samples) -> tuple[list[Any], list[float] | None]:
        found = Labels(*labeler(batch))
        ranks = list(found.ranks)
        require(
            len(ranks) == len(batch) and all(isinstance(rank, int) for rank in ranks),
            f"{name} should return one int rank per response, got {ranks!r:.80}",
        )
        if found.scores is None:
            return ranks, None
        scores = [math.nan if x is None else float(x) for x in found.scores]
        require(
            len(scores) == len(batch) and all(map(math.isfinite, scores)),
            f"{name} should return one finite score per response, or None for all",
        )
        return ranks, scores

    ranks, scores = label(samples)
    for group in samples.group.unique().tolist():
        rows = (samples.group == group).nonzero().flatten().tolist()
        found = [ranks[i] for i in rows]
        require(
            min(found) == 0 and max(found) < len(found),
            f"{name}: the ranks of a group should begin at 0, the best, got {found}",
        )
        for i in rows:
            for j in rows:
                require(
                    scores is None or not (ranks[i] < ranks[j] and scores[i] < scores[j]),
                    f"{name}: rank 0 is the best, but a response with a lower score is ahead",
                )
    order = list(reversed(range(len(samples))))
    other, _ = label(samples.select(torch.tensor(order)))
    require(
        other == [ranks[i] for i in order],
        f"{name}: another order of the rows changed ranks; rank i should belong to response i",
    )

"""A reward that calls out, waited for: what it costs when it hangs or fails is said and counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from rlhf_kit.engine.scoring import needs_models, score, summed
from rlhf_kit.errors import PluginError, RecipeError
from rlhf_kit.interfaces import CompositeReward, Context, RewardFn, Stateful
from rlhf_kit.types import PartialScores, Samples
from rlhf_kit_rewards.calls import MOST_LATE, Calls, Late, Outcome, Patience
from rlhf_kit_rewards.options import JudgeOptions


class _Answer(NamedTuple):
    score: float
    counts: dict[str, float]


class Judge:
    """Calls a reward for each response by itself.

    The scores are in the order of the responses, whichever comes first. The counts are ``retries``,
    ``timeouts`` and ``errors`` of calls, ``failed`` responses, and ``reward/...``: what the reward
    has counted itself.

    Raises:
        PluginError: a response has no score and ``on_error`` is "stop"; or too many in a row have
            none, or all did from the beginning: then it is not one that fails now and then; or a
            call is late that must not be left alone.
    """

    def __init__(self, options: JudgeOptions, context: Context) -> None:
        part = options.reward
        self._options, self._at = options, f"{part.where}: {part.key}"
        self._name = f"reward {part.component.name!r}"
        self._reward: RewardFn = context.build(part)
        if needs_models(self._reward):
            raise RecipeError(
                f"{self._at}: {self._name} computes with a model of this run, which is not waited "
                "for; name it without a judge"
            )
        if isinstance(self._reward, CompositeReward):
            raise RecipeError(
                f"{self._at}: {self._name} is made of several numbers, of which a judge would keep "
                "their sum alone; put the judge inside, around the part that calls out"
            )
        if isinstance(self._reward, Judge):
            raise RecipeError(f"{self._at}: {self._name} waits already; name it without a judge")
        stateful = isinstance(self._reward, Stateful)
        if stateful and options.parallel > 1:
            raise RecipeError(
                f"{self._at}: {self._name} keeps a state, which parallel calls would mix up; set "
                "parallel: 1 for the judge"
            )
        o = options
        self._patience = Patience(o.timeout, o.retries, o.backoff, o.parallel)
        self._late = Late(f"{self._at}: {self._name}", stateful, MOST_LATE * o.parallel)
        self._reached, self._in_a_row = False, 0

    def __call__(self, samples: Samples) -> PartialScores:
        rows = samples.without_trunk()
        ones = [rows.select(torch.tensor([i])) for i in range(len(rows))]
        for one in ones:
            _ = one.responses  # decoded here: a tokenizer need not bear several threads
        calls = Calls(self._score, self._patience, self._late)
        outcomes = self._watched(calls, ones)
        known = torch.tensor([outcome.value is not None for outcome in outcomes])
        instead = self._options.error_value or 0.0
        scores = [instead if x.value is None else x.value.score for x in outcomes]
        inside = summed(x.value.counts for x in outcomes if x.value is not None)
        counts = calls.counts | {"failed": float((~known).sum())} | inside
        if self._options.on_error == "value":
            known = torch.ones_like(known)
        return PartialScores(torch.tensor(scores), known, counts)

    def state_dict(self) -> dict[str, Any]:
        """Of the reward, which may have some."""
        return self._reward.state_dict() if isinstance(self._reward, Stateful) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if isinstance(self._reward, Stateful):
            self._reward.load_state_dict(state)

    def _score(self, one: Samples) -> _Answer:
        found = score(self._reward, one, self._name)
        if found.tokens is not None:
            raise PluginError(f"{self._name} scores tokens; a judge scores whole responses")
        if not bool(found.known):
            raise PluginError(f"{self._name} found no score")
        return _Answer(found.total.item(), found.counted("reward"))

    def _watched(
        self, calls: Calls[Samples, _Answer], ones: Sequence[Samples]
    ) -> list[Outcome[_Answer]]:
        """All outcomes, in the order of the responses, as long as failing is no more than that."""
        o, found = self._options, dict[int, Outcome[_Answer]]()
        for outcome in calls.outcomes(ones):
            found[outcome.which] = outcome
            if outcome.value is not None:
                self._reached, self._in_a_row = True, 0
                continue
            self._in_a_row += 1
            said = (
                f"{self._at}: no score for response {outcome.which} of {len(ones)} "
                f"({ones[outcome.which].responses[0][:60]!r}) after {o.retries + 1} calls: "
                f"{outcome.failure}"
            )
            if o.on_error == "stop":
                raise PluginError(f"{said}; set on_error: drop or value to go on without")
            if self._in_a_row >= o.most_in_a_row:
                row = f"; {self._in_a_row} responses in a row had none (most_in_a_row)"
                raise PluginError(said + row)
            if not self._reached and len(found) == len(ones):
                raise PluginError(f"{said}; it has not answered once")
        return [found[i] for i in range(len(ones))]

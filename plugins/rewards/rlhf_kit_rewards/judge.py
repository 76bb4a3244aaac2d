"""A reward that calls out, waited for: what it costs when it hangs or fails is said and counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rlhf_kit.engine.scoring import needs_models, score
from rlhf_kit.errors import PluginError, RecipeError
from rlhf_kit.interfaces import Context, RewardFn, Stateful
from rlhf_kit.types import PartialScores, Samples
from rlhf_kit_rewards.calls import Calls, Outcome, Patience
from rlhf_kit_rewards.options import JudgeOptions


class Judge:
    """Calls a reward for each response by itself.

    The scores are in the order of the responses, whichever comes first. The counts are ``retries``,
    ``timeouts`` and ``errors`` of calls, and ``failed`` responses.

    Raises:
        PluginError: a response has no score and ``on_error`` is "stop"; or too many in a row have
            none, or all did from the beginning: then it is not one that fails now and then.
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
        if self.state_dict() and options.parallel > 1:
            raise RecipeError(
                f"{self._at}: {self._name} keeps a state, which parallel calls would mix up; set "
                "parallel: 1 for the judge"
            )
        self._patience = Patience(
            options.timeout, options.retries, options.backoff, options.parallel
        )
        self._reached, self._in_a_row = False, 0

    def __call__(self, samples: Samples) -> PartialScores:
        rows = samples.without_trunk()
        ones = [rows.select(torch.tensor([i])) for i in range(len(rows))]
        for one in ones:
            _ = one.responses  # decoded here: a tokenizer need not bear several threads
        calls = Calls(lambda i: self._score(ones[i]), self._patience)
        outcomes = self._watched(calls, samples.responses)
        known = torch.tensor([outcome.value is not None for outcome in outcomes])
        instead = self._options.error_value or 0.0
        scores = [instead if outcome.value is None else outcome.value for outcome in outcomes]
        counts = calls.counts | {"failed": float((~known).sum())}
        if self._options.on_error == "value":
            known = torch.ones_like(known)
        return PartialScores(torch.tensor(scores), known, counts)

    def state_dict(self) -> dict[str, Any]:
        """Of the reward, which may have some."""
        return self._reward.state_dict() if isinstance(self._reward, Stateful) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if isinstance(self._reward, Stateful):
            self._reward.load_state_dict(state)

    def _score(self, one: Samples) -> float:
        found = score(self._reward, one, self._name)
        if found.tokens is not None:
            raise PluginError(f"{self._name} scores tokens; a judge scores whole responses")
        if not bool(found.known):
            raise PluginError(f"{self._name} found no score")
        return found.total.item()

    def _watched(self, calls: Calls[float], responses: Sequence[str]) -> list[Outcome[float]]:
        """All outcomes, in the order of the responses, as long as failing is no more than that."""
        o, found = self._options, dict[int, Outcome[float]]()
        for outcome in calls.outcomes(len(responses)):
            found[outcome.which] = outcome
            if outcome.value is not None:
                self._reached, self._in_a_row = True, 0
                continue
            self._in_a_row += 1
            said = (
                f"{self._at}: no score for response {outcome.which} of {len(responses)} "
                f"({responses[outcome.which][:60]!r}) after {o.retries + 1} calls: "
                f"{outcome.failure}"
            )
            if o.on_error == "stop":
                raise PluginError(f"{said}; set on_error: drop or value to go on without")
            if self._in_a_row >= o.most_in_a_row:
                row = f"; {self._in_a_row} responses in a row had none (most_in_a_row)"
                raise PluginError(said + row)
            if not self._reached and len(found) == len(responses):
                raise PluginError(f"{said}; it has not answered once")
        return [found[i] for i in range(len(responses))]

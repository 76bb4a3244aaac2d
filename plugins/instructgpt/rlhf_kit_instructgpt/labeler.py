"""A script that ranks completions, standing in for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_kit.engine.scoring import load_models, needs_models, score
from rlhf_kit.interfaces import Context, Labels, Memory, RewardFn, Stateful
from rlhf_kit.types import Samples
from rlhf_kit_instructgpt.options import ScriptedOptions


def rank(scores: Sequence[float], tie_margin: float) -> list[int]:
    """Competition ranks, 0 = best; a score within ``tie_margin`` of a tie's first joins the tie."""
    ranks = [0] * len(scores)
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    leader = 0
    for place, i in enumerate(order):
        if scores[order[leader]] - scores[i] > tie_margin:
            leader = place
        ranks[i] = leader
    return ranks


class Scripted:
    """Ranks by a reward function."""

    def __init__(self, options: ScriptedOptions, context: Context) -> None:
        self._margin = options.tie_margin
        self._reward: RewardFn = context.build(options.reward)
        self.needs_models = needs_models(self._reward)

    def load(self, memory: Memory) -> None:
        load_models(self._reward, memory)

    def state_dict(self) -> dict[str, Any]:
        """Of the reward, which may have some."""
        return self._reward.state_dict() if isinstance(self._reward, Stateful) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if isinstance(self._reward, Stateful):
            self._reward.load_state_dict(state)

    def __call__(self, samples: Samples) -> Labels:
        found = score(self._reward, samples, "labeler")
        scores = found.total.tolist()
        ranks: list[int | None] = [None] * len(samples)
        groups, known = samples.group.cpu(), found.known.cpu()
        for group in groups.unique().tolist():
            rows = ((groups == group) & known).nonzero().flatten().tolist()
            order = rank([scores[i] for i in rows], self._margin)
            for i, value in zip(rows, order, strict=True):
                ranks[i] = value
        return Labels(ranks, found.known_or_none(), found.counts)

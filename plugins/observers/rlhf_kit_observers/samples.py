"""Observer `samples`: what the policy says as it learns, in ``samples.jsonl``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlhf_kit.engine.metrics import MetricsFile
from rlhf_kit.interfaces import Observer, ObserverContext
from rlhf_kit.types import Rollout, asked
from rlhf_kit_observers.options import SamplesOptions


class SamplesFile(Observer):
    """One JSON object a sample: stage, step, prompt, response, finished, score, and its parts.

    The first samples of a rollout, in its own order. What a resumed stage repeats is written once.
    """

    def __init__(self, options: SamplesOptions, context: ObserverContext) -> None:
        self._options, self._context = options, context
        self._seen: set[str] = set()

    def rollout_collected(self, stage: str, step: int, rollout: Rollout) -> None:
        due = step % self._options.every == 0
        if not due and stage in self._seen:
            return
        file = MetricsFile(self._context.folder / "samples.jsonl", {})
        if stage not in self._seen:
            self._seen.add(stage)
            file.cut(stage, step)  # of an earlier result, or of steps that come again
        if due:
            for row in self._rows(rollout):
                file.write(stage, step, row)

    def _rows(self, rollout: Rollout) -> Iterator[dict[str, Any]]:
        samples = rollout.samples
        for i in range(min(self._options.count, len(samples))):
            row = {
                "prompt": asked(samples.rows[i]),
                "response": samples.responses[i],
                "finished": bool(samples.finished[i]),
                "score": rollout.scores[i].item(),
            }
            parts = {name: scores[i].item() for name, scores in rollout.components.items()}
            yield row | ({"parts": parts} if parts else {})

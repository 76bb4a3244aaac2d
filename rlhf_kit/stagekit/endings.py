"""A warning for stages that sample: no answer ends."""

from __future__ import annotations

from rlhf_kit.interfaces import StageRun
from rlhf_kit.types import Samples

ENOUGH = 8  # answers from which it is told


class Endings:
    """Counts answers until one has ended; says so, once, when many were sampled and none has.

    What is cut off at the limit is scored and learned from all the same, and nothing else tells.

    Args:
        run: shows the line.
        whose: answers, such as "of ppo".
    """

    def __init__(self, run: StageRun, whose: str = "") -> None:
        self._run, self._whose = run, whose
        self._seen, self._settled = 0, False

    def see(self, samples: Samples) -> None:
        """Take ``samples`` into account."""
        if self._settled:
            return
        self._seen += len(samples)
        self._settled = bool(samples.finished.any())
        if self._settled or self._seen < ENOUGH:
            return
        self._settled = True
        whose = f" {self._whose}" if self._whose else ""
        self._run.say(
            f"warning: none of the first {self._seen} answers{whose} ended within "
            f"{samples.response_tokens.shape[1]} tokens; all were cut off there. Raise "
            "sampling.max_new_tokens, or name the tokens that this model ends its answers with in "
            "model.end_tokens"
        )

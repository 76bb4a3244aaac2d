"""Training in whole passes over the data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from rlhf_kit.engine.minibatch import Cycle
from rlhf_kit.interfaces import StageRun, Stateful


@dataclass(frozen=True, eq=False)
class Batch:
    """The rows of one optimizer step."""

    step: int
    rows: Tensor  # [B] int64
    ends_pass: bool  # the time to validate


class Passes:
    """``times`` passes over ``count`` rows in batches of ``size``, each row once in a pass.

    Args:
        run: counts the steps and saves the place.
        count: of rows.
        size: of a batch; the last one of a pass may be smaller.
        times: how many passes.
    """

    def __init__(self, run: StageRun, count: int, size: int, times: int) -> None:
        self._run = run
        self._cycle = Cycle(count, size, run.generator, span_passes=False)
        self._each = math.ceil(count / size)
        self.total = self._each * times  # steps

    def batches(self, state: Mapping[str, Stateful]) -> Iterator[Batch]:
        """From the start, or from where a checkpoint stands; ``state`` is restored first."""
        for step in self._run.steps(self.total, {**state, "cycle": self._cycle}):
            yield Batch(step, self._cycle.next(), (step + 1) % self._each == 0)

"""An exponential moving average of weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from rlhf_kit.interfaces import Optimizer


class WeightAverage:
    """``average = decay * average + (1 - decay) * weight`` after every optimizer step.

    At full precision: that of the optimizer's masters where it has any. InstructGPT averages with
    decay 0.992 (arXiv:2203.02155, appendix C.4).
    """

    def __init__(self, parameters: Sequence[Parameter], optimizer: Optimizer, decay: float) -> None:
        self._parameters, self._optimizer, self._decay = list(parameters), optimizer, decay
        self._average = [w.clone() for w in optimizer.precise(self._parameters)]

    @torch.no_grad()
    def update(self) -> None:
        """Take the current weights in."""
        weights = self._optimizer.precise(self._parameters)
        for average, weight in zip(self._average, weights, strict=True):
            average.lerp_(weight, 1.0 - self._decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model computes with the average; nothing may be trained or checkpointed."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Change places with the weights, which takes a copy of one tensor at a time.

        A parameter of lower precision follows what then stands in its master's place.
        """
        weights = self._optimizer.precise(self._parameters)
        for parameter, weight, average in zip(
            self._parameters, weights, self._average, strict=True
        ):
            _swap(weight, average)
            if parameter.dtype != weight.dtype:
                parameter.copy_(weight)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self._average}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for average, saved in zip(self._average, state["average"], strict=True):
            average.copy_(saved)


def _swap(one: Tensor, other: Tensor) -> None:
    kept = one.clone()
    one.copy_(other)
    other.copy_(kept)

"""An exponential moving average of weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from rlhf_kit.engine.optim import Optimizer


class WeightAverage:
    """``average = decay * average + (1 - decay) * weight`` after every optimizer step, in float32.

    InstructGPT averages with decay 0.992 (arXiv:2203.02155, appendix C.4).
    """

    def __init__(self, parameters: Sequence[Parameter], optimizer: Optimizer, decay: float) -> None:
        self._parameters, self._optimizer, self._decay = list(parameters), optimizer, decay
        self._average = [w.float().clone() for w in optimizer.precise(self._parameters)]

    @torch.no_grad()
    def update(self) -> None:
        """Take the current weights in."""
        weights = self._optimizer.precise(self._parameters)
        for average, weight in zip(self._average, weights, strict=True):
            average.lerp_(weight.float(), 1.0 - self._decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model computes with the average."""
        own = [p.detach().clone() for p in self._parameters]
        self._put(self._average)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self._average}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for average, saved in zip(self._average, state["average"], strict=True):
            average.copy_(saved)

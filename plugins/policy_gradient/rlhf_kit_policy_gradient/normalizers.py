"""Normalisers. The paper mentions none; whitened advantages are openai/lm-human-preferences'."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlhf_kit.interfaces import Context
from rlhf_kit.ops.masking import Total, alone, masked_mean, masked_var, whiten
from rlhf_kit_policy_gradient.options import RunningOptions, WhitenOptions


def _total(context: Context | None) -> Total:
    """Over the processes that share a rollout; without a context there is one."""
    return alone if context is None else context.world.sum


class Whiten:
    """Mean 0 and variance 1 over the valid places of one rollout."""

    def __init__(self, options: WhitenOptions, context: Context | None = None) -> None:
        self._options, self._total = options, _total(context)

    def __call__(self, x: Tensor, mask: Tensor) -> Tensor:
        o = self._options
        return whiten(x, mask, shift_mean=o.shift_mean, unbiased=o.unbiased, total=self._total)


class Running:
    """Scaled by the mean and the deviation of everything seen since the start of the training.

    Mean and variance of the batches are merged as in Chan, Golub and LeVeque (1979), in float64.
    """

    def __init__(self, options: RunningOptions, context: Context | None = None) -> None:
        self._options, self._total = options, _total(context)
        self._count = self._mean = 0.0
        self._squares = 0.0  # sum of squared differences from the mean

    def update(self, x: Tensor, mask: Tensor) -> None:
        count = float(self._total(mask.sum()))
        if count == 0:
            return
        x = x.double()
        mean = float(masked_mean(x, mask, self._total))
        squares = float(masked_var(x, mask, unbiased=False, total=self._total)) * count
        total, gap = self._count + count, mean - self._mean
        self._squares += squares + gap * gap * self._count * count / total
        self._mean += gap * count / total
        self._count = total

    @property
    def _deviation(self) -> float:
        """1 until there is a spread to speak of."""
        variance = self._squares / self._count if self._count else 0.0
        return variance**0.5 if variance > 1e-8 else 1.0

    def normalize(self, x: Tensor) -> Tensor:
        shift = self._mean if self._options.shift_mean else 0.0
        return (x - shift) / self._deviation

    def denormalize(self, x: Tensor) -> Tensor:
        shift = self._mean if self._options.shift_mean else 0.0
        return x * self._deviation + shift

    def __call__(self, x: Tensor, mask: Tensor) -> Tensor:
        self.update(x, mask)
        found = self.normalize(x)
        if self._options.clip is not None:
            found = found.clamp(-self._options.clip, self._options.clip)
        return torch.where(mask, found, 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self._count, "mean": self._mean, "squares": self._squares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._count, self._mean = state["count"], state["mean"]
        self._squares = state["squares"]

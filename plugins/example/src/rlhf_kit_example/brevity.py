"""A reward for responses of a given length."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kit.types import Samples
from rlhf_kit_example.options import BrevityOptions


class Brevity:
    """``exp(-((words - target) / width)^2 / 2)``: 1 at the target, towards 0 away from it."""

    def __init__(self, options: BrevityOptions) -> None:
        self._target, self._width = options.target, options.width

    def __call__(self, samples: Samples) -> Tensor:
        """Scores [B] float32."""
        words = torch.tensor([len(text.split()) for text in samples.responses])  # [B]
        return torch.exp(-0.5 * ((words.float() - self._target) / self._width).square())

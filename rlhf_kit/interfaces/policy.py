"""The policy: gives an account of samples. Drawing them is a sampler's."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from rlhf_kit.interfaces.state import Trainable
from rlhf_kit.types import PolicyOutput, Samples, TextBatch


class Policy(Trainable, Protocol):
    hidden_size: int

    def evaluate(self, samples: Samples) -> PolicyOutput:
        """Log-probabilities [B, R] at the sampling temperature, and states [B, R, H].

        Both are aligned with the response tokens: nobody else shifts.
        """

    def next_token_logprobs(self, texts: TextBatch) -> Tensor:
        """[B, T-1] log-probabilities of tokens 1..T-1, zero where ``texts.predicted`` is False."""

    def reference(self) -> AbstractContextManager[None]:
        """Inside, every method answers as the frozen reference policy."""

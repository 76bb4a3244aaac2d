"""The policy: samples, and gives an account of samples; the reference gives an account alone."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from rlhf_kit.interfaces.state import Trainable
from rlhf_kit.types import PolicyOutput, Prompts, Samples, Sampling, TextBatch


class Reference(Protocol):
    """A frozen policy that others are compared with; any frozen Policy is one."""

    def evaluate(self, samples: Samples) -> PolicyOutput:
        """Log-probabilities [B, R] at the sampling temperature, and states [B, R, H].

        Both are aligned with the response tokens: nobody else shifts.
        """

    def next_token_logprobs(self, texts: TextBatch) -> Tensor:
        """[B, T-1] log-probabilities of tokens 1..T-1, zero where ``texts.predicted`` is False."""


class Policy(Reference, Trainable, Protocol):
    hidden_size: int

    def generate(self, prompts: Prompts, sampling: Sampling) -> Samples:
        """Sample one response per prompt; stops after the first end-of-sequence token."""

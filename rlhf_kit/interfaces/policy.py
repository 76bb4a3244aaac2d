"""The policy and its reference give an account of samples. Drawing them is a sampler's."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from rlhf_kit.interfaces.state import Trainable
from rlhf_kit.types import PolicyOutput, Samples, TextBatch


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

    def encode(self, samples: Samples) -> Samples:
        """With the activations of the frozen trunk, where there is one and they are missing.

        Everyone who reads a trunk of this origin then reads the same tensor.
        """

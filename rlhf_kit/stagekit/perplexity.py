"""Perplexity of running text."""

from __future__ import annotations

import math

import torch

from rlhf_kit.interfaces import Policy
from rlhf_kit.types import Texts


@torch.no_grad()
def perplexity(policy: Policy, texts: Texts, micro_batch: int = 4) -> float:
    """exp of the mean negative log-likelihood, in nats, per predicted token of ``texts``."""
    total = count = 0.0
    for micro in texts.split(micro_batch):
        total -= policy.next_token_logprobs(micro).sum().item()
        count += micro.predicted.sum().item()
    return math.exp(total / count)

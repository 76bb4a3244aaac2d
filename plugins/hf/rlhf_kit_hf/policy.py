"""A policy, and a reference: what can be asked of a role with the head of a language model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from rlhf_kit.interfaces import Tokenizer
from rlhf_kit.ops.logprobs import selected_logprobs
from rlhf_kit.types import PolicyOutput, Samples, TextBatch
from rlhf_kit_hf.role import Role


class TransformersReference:
    """Implements rlhf_kit.interfaces.Reference over any memory strategy; has no state to save."""

    def __init__(self, role: Role, device: torch.device) -> None:
        self.role, self.device = role, device

    def evaluate(self, samples: Samples) -> PolicyOutput:
        hidden = self.role.hidden(samples.tokens, samples.token_mask, samples.padded_trunk())
        # The one place where states shift against tokens: column t chose token t + 1.
        states = hidden[:, samples.prompts.tokens.shape[1] - 1 : -1]  # [B, R, H]
        logprobs = selected_logprobs(
            self.role.head,
            states,
            samples.response_tokens,
            samples.response_mask,
            samples.temperature,
        )
        return PolicyOutput(logprobs, states)

    def next_token_logprobs(self, texts: TextBatch) -> Tensor:
        tokens, mask = texts.tokens.to(self.device), texts.mask.to(self.device)
        hidden = self.role.hidden(tokens, mask, texts.trunk)
        return selected_logprobs(
            self.role.head, hidden[:, :-1], tokens[:, 1:], texts.predicted.to(self.device)
        )


class TransformersPolicy(TransformersReference):
    """Implements rlhf_kit.interfaces.Policy over any memory strategy."""

    def __init__(self, role: Role, tokenizer: Tokenizer, device: torch.device) -> None:
        super().__init__(role, device)
        self.tokenizer, self.hidden_size = tokenizer, role.hidden_size

    @torch.no_grad()
    def encode(self, samples: Samples) -> Samples:
        if samples.trunk is not None:
            return samples
        trunk = self.role.encode(samples.tokens, samples.token_mask)
        return samples if trunk is None else samples.with_trunk(trunk)

    def parameters(self) -> Iterable[Parameter]:
        return self.role.parameters()

    def state_dict(self) -> dict[str, Any]:
        return self.role.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.role.load_state_dict(state)

    def save(self, folder: Path) -> None:
        self.role.save(folder)

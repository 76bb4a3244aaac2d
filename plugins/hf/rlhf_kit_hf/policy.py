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
from rlhf_kit.types import PolicyOutput, Prompts, Samples, Sampling, TextBatch
from rlhf_kit_hf.decode import decode
from rlhf_kit_hf.role import Role


class TransformersReference:
    """Implements rlhf_kit.interfaces.Reference over any memory strategy; has no state to save."""

    def __init__(self, role: Role, device: torch.device) -> None:
        self._role, self._device = role, device

    def evaluate(self, samples: Samples) -> PolicyOutput:
        hidden = self._role.hidden(samples.tokens, samples.token_mask, samples.padded_trunk())
        # The one place where states shift against tokens: column t chose token t + 1.
        states = hidden[:, samples.prompts.tokens.shape[1] - 1 : -1]  # [B, R, H]
        logprobs = selected_logprobs(
            self._role.head,
            states,
            samples.response_tokens,
            samples.response_mask,
            samples.temperature,
        )
        return PolicyOutput(logprobs, states)

    def next_token_logprobs(self, texts: TextBatch) -> Tensor:
        tokens, mask = texts.tokens.to(self._device), texts.mask.to(self._device)
        hidden = self._role.hidden(tokens, mask, texts.trunk)
        return selected_logprobs(
            self._role.head, hidden[:, :-1], tokens[:, 1:], texts.predicted.to(self._device)
        )


class TransformersPolicy(TransformersReference):
    """Implements rlhf_kit.interfaces.Policy over any memory strategy."""

    def __init__(self, role: Role, tokenizer: Tokenizer, device: torch.device) -> None:
        super().__init__(role, device)
        self._tokenizer, self.hidden_size = tokenizer, role.hidden_size

    def generate(self, prompts: Prompts, sampling: Sampling) -> Samples:
        on_device = Prompts(
            prompts.tokens.to(self._device),
            prompts.mask.to(self._device),
            prompts.rows,
            prompts.group.to(self._device),
        )
        return decode(
            self._role,
            on_device,
            sampling,
            ends=self._tokenizer.end_ids,
            pad=self._tokenizer.pad_id,
            to_text=self._tokenizer.decode,
            max_length=self._tokenizer.max_length,
        )

    def parameters(self) -> Iterable[Parameter]:
        return self._role.parameters()

    def state_dict(self) -> dict[str, Any]:
        return self._role.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._role.load_state_dict(state)

    def save(self, folder: Path) -> None:
        self._role.save(folder)

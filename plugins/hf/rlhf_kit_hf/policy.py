"""A policy made of two roles: the one that learns and the frozen reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from rlhf_kit.interfaces import Tokenizer
from rlhf_kit.ops.logprobs import selected_logprobs
from rlhf_kit.types import PolicyOutput, Samples, TextBatch
from rlhf_kit_hf.role import Role


class TransformersPolicy:
    """Implements rlhf_kit.interfaces.Policy over any memory strategy."""

    def __init__(
        self,
        role: Role,
        reference: Callable[[], Role],
        tokenizer: Tokenizer,
        device: torch.device,
    ) -> None:
        self._trained, self._active = role, role
        # Built when first asked for: supervised stages never do.
        self._build_reference = reference
        self._reference: Role | None = None
        self.tokenizer, self.device = tokenizer, device
        self.hidden_size = role.hidden_size

    @property
    def role(self) -> Role:
        """The weights that every method answers with at the moment."""
        return self._active

    def evaluate(self, samples: Samples) -> PolicyOutput:
        hidden = self._active.hidden(samples.tokens, samples.token_mask, samples.padded_trunk())
        # The one place where states shift against tokens: column t chose token t + 1.
        states = hidden[:, samples.prompts.tokens.shape[1] - 1 : -1]  # [B, R, H]
        logprobs = selected_logprobs(
            self._active.head,
            states,
            samples.response_tokens,
            samples.response_mask,
            samples.temperature,
        )
        return PolicyOutput(logprobs, states)

    def next_token_logprobs(self, texts: TextBatch) -> Tensor:
        tokens, mask = texts.tokens.to(self.device), texts.mask.to(self.device)
        hidden = self._active.hidden(tokens, mask, texts.trunk)
        return selected_logprobs(
            self._active.head, hidden[:, :-1], tokens[:, 1:], texts.predicted.to(self.device)
        )

    @contextmanager
    def reference(self) -> Iterator[None]:
        if self._reference is None:
            # What an adapter is first filled with is drawn: a run that goes on from a checkpoint
            # builds it at another time, and must not draw other numbers afterwards.
            with torch.random.fork_rng():
                self._reference = self._build_reference()
        previous, self._active = self._active, self._reference
        try:
            yield
        finally:
            self._active = previous

    def parameters(self) -> Iterable[Parameter]:
        return self._trained.parameters()

    def state_dict(self) -> dict[str, Any]:
        return self._trained.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._trained.load_state_dict(state)

    def save(self, folder: Path) -> None:
        self._trained.save(folder)

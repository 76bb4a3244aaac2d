"""Endless streams of prompts and of pretraining text; their place survives a resume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rlhf_kit.engine.minibatch import Cycle
from rlhf_kit.interfaces import Tokenizer
from rlhf_kit.types import Prompts, TextBatch
from rlhf_kit.types.samples import Row
from rlhf_kit_instructgpt.batches import prompt_batch


class PromptStream:
    """Prompts for one rollout after another: ``size`` rows, each prompt ``repeat`` times."""

    def __init__(
        self,
        rows: Sequence[Row],
        size: int,
        tokenizer: Tokenizer,
        generator: torch.Generator,
        repeat: int = 1,
    ) -> None:
        self._rows, self._tokenizer, self._repeat = rows, tokenizer, repeat
        self._cycle = Cycle(len(rows), size // repeat, generator)

    def next(self) -> Prompts:
        rows = [self._rows[i] for i in self._cycle.next().tolist()]
        return prompt_batch(rows, self._tokenizer).repeat(self._repeat)

    def state_dict(self) -> dict[str, Any]:
        return self._cycle.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._cycle.load_state_dict(state)


class TextStream:
    """Blocks of pretraining text: ``per_episode`` of them for each episode of a minibatch."""

    def __init__(
        self, blocks: TextBatch, per_episode: float, micro: int, generator: torch.Generator
    ) -> None:
        self._blocks, self._per_episode, self._micro = blocks, per_episode, micro
        self._cycle = Cycle(len(blocks), 1, generator)

    def next(self, episodes: int) -> list[TextBatch]:
        """Micro-batches for one optimizer step."""
        count = max(1, round(self._per_episode * episodes))
        rows = torch.cat([self._cycle.next() for _ in range(count)])
        return list(self._blocks.select(rows).split(self._micro))

    def state_dict(self) -> dict[str, Any]:
        return self._cycle.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._cycle.load_state_dict(state)

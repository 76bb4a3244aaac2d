"""Endless streams of prompts and of pretraining text; their place survives a resume."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from rlhf_kit.engine.minibatch import Cycle
from rlhf_kit.stagekit.prompts import PromptSet
from rlhf_kit.types import Prompts, TextBatch, Texts


class PromptStream:
    """Prompts for one rollout after another: ``size`` rows, each prompt ``repeat`` times."""

    def __init__(
        self, prompts: PromptSet, size: int, generator: torch.Generator, repeat: int = 1
    ) -> None:
        self._prompts, self._repeat = prompts, repeat
        self._cycle = Cycle(len(prompts), size // repeat, generator)

    def next(self) -> Prompts:
        prompts = self._prompts.batch(self._cycle.next())
        # One prompt may come twice in a rollout: its place there names its stream of draws.
        return replace(prompts, stream=torch.arange(len(prompts))).repeat(self._repeat)

    def state_dict(self) -> dict[str, Any]:
        return self._cycle.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._cycle.load_state_dict(state)


class TextStream:
    """Blocks of pretraining text: ``per_episode`` of them for each episode of a minibatch."""

    def __init__(
        self, blocks: Texts, per_episode: float, micro: int, generator: torch.Generator
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

"""Stages, and what a run offers them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from rlhf_kit.interfaces.state import Stateful
from rlhf_kit.types import Rollout


class StageRun(Protocol):
    """One execution of a stage: its folder, its randomness, its record."""

    id: str
    generator: torch.Generator  # the stage's own randomness, part of every checkpoint

    def key(self, *names: str | int) -> int:
        """63 bits for what is drawn under ``names``, such as "sample" and a step; a function of

        them, the seed and the stage alone, as ``generator`` is not.
        """

    @property
    def folder(self) -> Path:
        """Where the stage writes. What an earlier recipe has left there is set aside when a stage

        first asks for it, or for its ``steps``: after whatever could refuse to be built.
        """

    @property
    def resumed(self) -> bool:
        """Whether ``steps`` will go on from a checkpoint rather than from the start."""

    def steps(self, total: int, state: Mapping[str, Stateful], unit: str = "step") -> Iterable[int]:
        """Count from 0, or from where the last checkpoint stands, to ``total - 1``.

        Restores ``state`` first; afterwards shows progress, saves checkpoints, and stops cleanly
        after the step during which somebody asked to stop (Ctrl-C, SIGTERM). Once in a stage.
        """

    def end_step(self, step: int, metrics: Mapping[str, float], line: str | None = None) -> None:
        """Record the metrics of one step; ``line`` is what a person reads about it."""

    def rollout_collected(self, step: int, rollout: Rollout) -> None:
        """Show the rollout to observers."""

    def say(self, text: str) -> None:
        """One line for the person watching."""


class Stage(Protocol):
    """Built before any model is loaded, for every stage of the recipe: the constructor reads and

    checks the stage's data, and everything else that can be wrong cheaply.
    """

    def run(self, run: StageRun) -> dict[str, Any]:
        """Do the work, write the artifact into ``run.folder``, return a JSON-able summary."""

"""Who watches a run, and changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rlhf_kit.errors import PluginError, did_you_mean
from rlhf_kit.types import Rollout

if TYPE_CHECKING:
    from rlhf_kit.recipe import Recipe


class ObserverContext(Protocol):
    """Passed to observers that have a parameter named ``context``."""

    name: str  # as the recipe calls the observer

    @property
    def folder(self) -> Path:
        """The observer's own, ``observers/<name>`` in the run folder; made when first asked for."""

    def say(self, text: str) -> None:
        """One line for the person watching."""


class Observer:
    """Told of what happens in a run. Look, do not change.

    Each event does nothing here: an observer subclasses this and writes those that it wants. An
    exception is reported once and stops nothing; KeyboardInterrupt stops the run, and so does
    writing into what is shown.
    """

    def __init_subclass__(cls) -> None:
        """Refuse a method that is nearly called like an event, and would never be told anything."""
        super().__init_subclass__()
        events = [name for name in vars(Observer) if not name.startswith("_")]
        for name, found in vars(cls).items():
            if callable(found) and not name.startswith("_") and name not in events:
                near = did_you_mean(name, events, cutoff=0.85)
                if near and not name.startswith(tuple(f"{event}_" for event in events)):
                    raise PluginError(f"observer {cls.__name__}: there is no event {name!r}{near}")

    def run_started(self, folder: Path, recipe: Recipe) -> None:
        """A run begins, or goes on, in ``folder``."""

    def run_ended(self, folder: Path, error: BaseException | None) -> None:
        """A run ends; ``error`` is what stopped it, if anything did."""

    def stage_started(self, stage: str, folder: Path) -> None:
        """A stage begins, or goes on; finished stages are not announced."""

    def stage_ended(self, stage: str, folder: Path, summary: Mapping[str, Any]) -> None:
        """A stage has written its artifact and its summary."""

    def rollout_collected(self, stage: str, step: int, rollout: Rollout) -> None:
        """A stage has sampled and scored one batch."""

    def step_ended(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """One step of a stage is complete: an optimizer's, or a rollout with its updates."""

    def checkpoint_saved(self, stage: str, step: int, path: Path) -> None:
        """A checkpoint of everything with state is on disk."""

"""All observers of a run as one, each guarded by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rlhf_kit.engine.foreign import first_call, untouched
from rlhf_kit.engine.seeding import randomness_kept
from rlhf_kit.interfaces import Observer
from rlhf_kit.origins import Whose
from rlhf_kit.plugins import one_line
from rlhf_kit.types import Rollout

if TYPE_CHECKING:
    from rlhf_kit.recipe import Recipe


class Observers(Observer):
    """Passes every event on to each observer.

    One that fails is reported once, by name; neither the run nor another observer notices. What an
    observer draws from the global generators is put back, since it may not change a result; one
    that writes into a rollout stops the run.

    Args:
        observers: by the names that the recipe gives them.
        warn: shows one line.
    """

    def __init__(self, observers: Mapping[str, Observer], warn: Callable[[str], None]) -> None:
        self._observers, self._warn = dict(observers), warn
        self._reported: set[str] = set()

    def run_started(self, folder: Path, recipe: Recipe) -> None:
        self._tell(lambda observer: observer.run_started(folder, recipe))

    def run_ended(self, folder: Path, error: BaseException | None) -> None:
        self._tell(lambda observer: observer.run_ended(folder, error))

    def stage_started(self, stage: str, folder: Path) -> None:
        self._tell(lambda observer: observer.stage_started(stage, folder))

    def stage_ended(self, stage: str, folder: Path, summary: Mapping[str, Any]) -> None:
        self._tell(lambda observer: observer.stage_ended(stage, folder, dict(summary)))

    def rollout_collected(self, stage: str, step: int, rollout: Rollout) -> None:
        for name, observer in self._observers.items():
            who = Whose(observer, f"observer {name!r}")
            with untouched(rollout, "rollout", who, first_call(observer)):
                self._ask(name, observer, partial(observer.rollout_collected, stage, step, rollout))

    def step_ended(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        self._tell(lambda observer: observer.step_ended(stage, step, dict(metrics)))

    def checkpoint_saved(self, stage: str, step: int, path: Path) -> None:
        self._tell(lambda observer: observer.checkpoint_saved(stage, step, path))

    def _tell(self, event: Callable[[Observer], None]) -> None:
        for name, observer in self._observers.items():
            self._ask(name, observer, partial(event, observer))

    def _ask(self, name: str, observer: Observer, event: Callable[[], None]) -> None:
        try:
            with randomness_kept(), torch.set_grad_enabled(torch.is_grad_enabled()):
                event()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit is no reason to end a run either
            if name not in self._reported:
                self._reported.add(name)
                who = Whose(observer, f"observer {name!r}")
                self._warn(f"warning: {who} failed: {one_line(error)} (said once)")

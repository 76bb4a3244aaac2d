"""The places where runs are cut: each stage of a pipeline, and the whole of it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from forker import Forker
from pipelines import write_pipeline


@dataclass(frozen=True)
class Place:
    """Where a stage, or a whole recipe, is run, cut and run again.

    Args:
        name: for a person, such as "toy/lora/ppo".
        recipe: whose last stage, or whose every stage, is cut.
        stages: of the recipe.
        start: a run folder to begin from; None: an empty one.
        wanted: the run folder as it is without a death.
        seconds: of a run from ``start`` without a death.
        operations: on files, in that run, a checkpoint after each step.
    """

    name: str
    recipe: Path
    stages: Sequence[str]
    start: Path | None
    wanted: Path
    seconds: float
    operations: Sequence[str]


class Pipeline:
    """A recipe of many stages, run stage by stage without a death as far as it is asked for.

    Args:
        forker: makes the runs.
        folder: for the project and the run folders.
        model: a folder of a model.
        name: of model and memory, such as "toy/lora".
        kind: of ``pipelines.KINDS``.
    """

    def __init__(self, forker: Forker, folder: Path, model: Path, name: str, kind: str) -> None:
        self._forker, self._name, self._runs = forker, name, folder / "runs"
        memory = name.partition("/")[2]
        self._recipes = dict(write_pipeline(folder / "project", model, memory, kind))
        self._places: list[Place] = []

    def stage(self, id: str) -> Place:
        """After a run of the stages before it."""
        ids = list(self._recipes)
        while len(self._places) <= ids.index(id):
            self._run(ids[: len(self._places) + 1])
        return self._places[ids.index(id)]

    def whole(self) -> Place:
        """From an empty folder."""
        last = self.stage(list(self._recipes)[-1])
        seconds = sum(place.seconds for place in self._places)
        name = f"{self._name}/all"
        operations = [each for place in self._places for each in place.operations]
        return Place(name, last.recipe, last.stages, None, last.wanted, seconds, operations)

    def _run(self, stages: list[str]) -> None:
        start = self._places[-1].wanted if self._places else None
        recipe, after = self._recipes[stages[-1]], self._runs / stages[-1]
        if start is not None:
            shutil.copytree(start, after)
        attempt = self._forker.run(recipe, after, ("checkpoint.steps=1",))
        assert attempt.code == 0, attempt.text
        name = f"{self._name}/{stages[-1]}"
        place = Place(name, recipe, stages, start, after, attempt.seconds, attempt.operations)
        self._places.append(place)

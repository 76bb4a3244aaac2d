"""The context of one run: builds parts, finds artifacts, knows what each stage depends on."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from rlhf_kit.components import Part, StageRef
from rlhf_kit.conforming import refuse_unlike_seam
from rlhf_kit.content import Contents
from rlhf_kit.engine.foreign import foreign
from rlhf_kit.engine.guarded import GuardedEngine, GuardedMemory, GuardedSource, guarded_data
from rlhf_kit.errors import PluginError, RlhfKitError
from rlhf_kit.integrity import check_artifact
from rlhf_kit.interfaces import (
    DataSource,
    Engine,
    Identified,
    Memory,
    ModelSource,
    Observer,
    ObserverContext,
    ReadsFolders,
    Stage,
    Tokenizer,
    World,
)
from rlhf_kit.origins import Kept, named, remember
from rlhf_kit.plugins import one_line
from rlhf_kit.recipe import Recipe, StageBlock, plain
from rlhf_kit.recipe.agreement import loaded_refs
from rlhf_kit.recipe.identity import execution, identity
from rlhf_kit.recipe.walk import parts_of, refs_of
from rlhf_kit.run_folder import OBSERVERS, STAGES
from rlhf_kit.seams import ENGINE, MEMORY, MODEL, NAMED
from rlhf_kit.stage_record import StageRecord

# The runner's own part in every result: seeds, checkpoints, the order of calls.
_RUNNER = "rlhf_kit.engine.stage_run"


@dataclass
class ModelAndMemory:
    """A model source, and the block of the memory strategy over it."""

    model: Part
    memory: Part
    source: ModelSource

    @property
    def model_key(self) -> str:
        """The same for model blocks that mean the same."""
        return _meaning(self.model)

    @property
    def key(self) -> str:
        """The same for blocks that mean the same."""
        return self.model_key + _meaning(self.memory)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return self.source.tokenizer()

    def identity(self, now: Contents) -> dict[str, Any]:
        """What the result of a stage depends on, for its fingerprint."""
        resolved: dict[str, Any] = {}
        target = self.memory.component.load()
        if isinstance(target, Identified):
            with foreign(f"{named(self.memory)}: identity()"):
                resolved |= target.identity(self.memory.options)
        return {
            MODEL: identity(self.model, now) | {"weights": self.source.fingerprint()},
            MEMORY: identity(self.memory, now) | resolved,
        }

    def execution(self) -> dict[str, Any]:
        """What may change rounding, for the record of an attempt."""
        return {**_execution(MODEL, self.model), **_execution(MEMORY, self.memory)}


class RunContext:
    """What all stages of a run share."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        self._data: dict[str, DataSource] = {}
        self._sources: dict[str, ModelSource] = {}
        self._pairs: dict[str, ModelAndMemory] = {}
        self._checked: set[Path] = set()
        self._todo: set[str | None] = set()
        self._kept: dict[str | None, Kept] = defaultdict(Kept)
        self.model_and_memory(None)

    def model_and_memory(self, stage: str | None) -> ModelAndMemory:
        """Of a stage, or of the recipe. The same blocks give the same object."""
        model, memory = self.recipe.model_and_memory(stage)
        key = _meaning(model)
        if key not in self._sources:
            with self._kept[None]:
                self._sources[key] = GuardedSource(construct(model, None))
        found = ModelAndMemory(model, memory, self._sources[key])
        return self._pairs.setdefault(found.key, found)

    @cached_property
    def engine(self) -> Engine:
        """One for all stages: what it starts, such as a process group, is started once."""
        with self._kept[None]:
            return GuardedEngine(construct(self.recipe.engine, None))

    @contextmanager
    def running(self, id: str | None = None) -> Iterator[None]:
        """At the end the parts of a stage, or of the run, may go with the weights they hold."""
        try:
            with self._kept[id]:
                yield
        finally:
            for kept in self._kept.values() if id is None else [self._kept[id]]:
                kept.drop()

    def stage_folder(self, id: str) -> Path:
        return self.folder / STAGES / id

    def build_stage(self, stage: StageBlock) -> Stage:
        for loaded in loaded_refs(stage):
            pair = self.model_and_memory(stage.id if loaded.own else None)
            strategy = pair.memory.component.load()
            if loaded.ref.folder is not None and isinstance(strategy, ReadsFolders):
                options = pair.memory.options
                strategy.refuse(options, loaded.ref.folder, pair.source, pair.tokenizer)
        with self._kept[stage.id]:
            return construct(stage.part, StageContext(self, stage.id))

    def build_observers(self, say: Callable[[str], None]) -> dict[str, Observer]:
        """The observers of the recipe, by name; ``say`` shows one line."""
        return {
            name: construct(part, WatchContext(name, self.folder / OBSERVERS / name, say))
            for name, part in self.recipe.observers.items()
        }

    def data(self, part: Part, context: StageContext) -> DataSource:
        """Data sources are shared: the same block is read once."""
        if part.key not in self._data:
            with self._kept[None]:
                self._data[part.key] = guarded_data(construct(part, context))
        return self._data[part.key]

    def artifact(self, ref: StageRef) -> Path:
        """The folder of what ``ref`` means, which is as its stage left it where that is finished.

        Raises:
            DataError: a file of it is missing or damaged.
        """
        folder = self.stage_folder(ref.stage) if ref.stage is not None else ref.folder
        assert folder is not None
        # What is about to be replaced is not looked at, and what this process wrote is as it was.
        known = ref.stage in self._todo or folder in self._checked
        if not known and check_artifact(folder):
            self._checked.add(folder)
        return folder

    def records(self) -> dict[str, StageRecord]:
        """What the run folder holds of each stage, with the fingerprint the recipe now gives it."""
        records: dict[str, StageRecord] = {}
        now = Contents()
        for id, stage in self.recipe.stages.items():
            context = StageContext(self, id)
            data = [p for p in parts_of(stage.part) if p.component.seam in NAMED]
            pairs = [self.model_and_memory(id)]
            if any(ref.folder for ref in refs_of(stage.part)):
                # What is in a folder may be loaded into the recipe's.
                pairs.append(self.model_and_memory(None))
            content = {
                "the seed": [id, self.recipe.seed],
                "its options, or a file or plugin that it uses": identity(stage.part, now),
                "rlhf_kit": now.source(_RUNNER),
                "its data": [self.data(part, context).fingerprint() for part in data],
                "a stage before it": [records[need].fingerprint for need in stage.needs],
                "the engine": identity(self.recipe.engine, now),
                "the model or memory": [pair.identity(now) for pair in pairs],
            }
            records[id] = StageRecord.read(
                id,
                self.stage_folder(id),
                stage.part.component.produces,
                {what: _hash(value) for what, value in content.items()},
                {
                    **execution(stage.part),
                    **_execution(ENGINE, self.recipe.engine),
                    **pairs[0].execution(),
                },
            )
        self._todo = {id for id, record in records.items() if not record.finished}
        return records


def _execution(block: str, part: Part) -> dict[str, Any]:
    return {f"{block}.{key}": value for key, value in execution(part).items()}


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _meaning(part: Part) -> str:
    return json.dumps(plain(part), sort_keys=True, default=str)


class StageContext:
    """Implements rlhf_kit.interfaces.Context for one stage."""

    def __init__(self, run: RunContext, stage: str, pair: ModelAndMemory | None = None) -> None:
        self._run, self.stage, self.seed = run, stage, run.recipe.seed
        self._pair = run.model_and_memory(stage) if pair is None else pair
        # Weak, so that weights go when the stage that loaded them is done.
        self._memories: WeakValueDictionary[str, Memory] = WeakValueDictionary()
        self._guards: WeakValueDictionary[str, GuardedMemory] = WeakValueDictionary()

    @property
    def tokenizer(self) -> Tokenizer:
        return self._pair.tokenizer

    @property
    def engine(self) -> Engine:
        return self._run.engine

    @property
    def world(self) -> World:
        return self.engine.world

    def tokenizer_of(self, of: StageRef | None) -> Tokenizer:
        return self._of(of).tokenizer

    def same_model(self, of: StageRef | None) -> bool:
        return self._of(of).model_key == self._pair.model_key

    def _of(self, ref: StageRef | None) -> ModelAndMemory:
        return self._pair if ref is None else self._run.model_and_memory(ref.stage)

    def build(self, part: Part) -> Any:
        if part.component.seam in NAMED:
            return self._run.data(part, self)
        return construct(part, self)

    def artifact(self, ref: StageRef | None) -> Path | None:
        return None if ref is None else self._run.artifact(ref)

    def memory(self, of: StageRef | None = None) -> Memory:
        _ = self.engine  # there before any weights are
        pair = self._of(of)
        found = self._memories.get(pair.key)
        if found is None:
            context = StageContext(self._run, self.stage, pair)
            found = construct(pair.memory, context, source=pair.source)
            self._memories[pair.key] = found
        # The strategy lives as long as its roles do; the guard as long as somebody holds it.
        guard = self._guards.get(pair.key)
        if guard is None:
            guard = self._guards[pair.key] = GuardedMemory(found)
        return guard


class WatchContext:
    """Implements rlhf_kit.interfaces.ObserverContext."""

    def __init__(self, name: str, folder: Path, say: Callable[[str], None]) -> None:
        self.name, self._folder, self._say = name, folder, say

    @property
    def folder(self) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder

    def say(self, text: str) -> None:
        self._say(f"[{self.name}] {text}")


def construct(part: Part, context: StageContext | ObserverContext | None, **extra: Any) -> Any:
    """Call a component's target with its options, and with the context if it asks for it.

    Raises:
        PluginError: the target cannot be imported or built, or what it gives is not what its seam
            promises; RlhfKitErrors pass through.
    """
    who = named(part)
    try:
        target = part.component.load()
    except PluginError as error:
        raise PluginError(f"{part.where}: {part.key}: {error}") from error
    try:
        if "context" in inspect.signature(target).parameters:
            extra = {**extra, "context": context}
        built = target(part.options, **extra)
    except RlhfKitError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(f"{who} could not be built: {one_line(error)}") from error
    refuse_unlike_seam(built, part.component.seam, who)
    remember(built, part)
    return built

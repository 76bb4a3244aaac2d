"""The context of one run: builds parts, finds artifacts, knows what each stage depends on."""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from rlhf_kit.components import Part, StageRef
from rlhf_kit.errors import PluginError, RlhfKitError
from rlhf_kit.interfaces import DataSource, Memory, ModelSource, Stage, Tokenizer
from rlhf_kit.plugins import LoadedPlugins
from rlhf_kit.recipe import Recipe, plain
from rlhf_kit.recipe import Stage as StageBlock
from rlhf_kit.recipe.walk import parts_of, stage_refs
from rlhf_kit.stage_record import RECORD, StageRecord


@dataclass
class Backbone:
    """A model source, and the block of the memory strategy over it."""

    model: Part
    memory: Part
    source: ModelSource

    @property
    def key(self) -> str:
        """The same for blocks that mean the same."""
        return _meaning(self.model) + _meaning(self.memory)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return self.source.tokenizer()

    def describe(self) -> dict[str, Any]:
        """What the result of a stage depends on, for its fingerprint."""
        return {
            "model": plain(self.model) | {"weights": self.source.fingerprint()},
            "memory": plain(self.memory),
            "backbone_files": _hashes([*_files(self.model), *_files(self.memory)]),
        }


class RunContext:
    """What all stages of a run share."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        self._data: dict[str, DataSource] = {}
        self._sources: dict[str, ModelSource] = {}
        self._backbones: dict[str, Backbone] = {}
        self.backbone(None)

    def backbone(self, stage: str | None) -> Backbone:
        """Of a stage, or of the recipe. The same blocks give the same object."""
        model, memory = self.recipe.backbone(stage)
        key = _meaning(model)
        if key not in self._sources:
            self._sources[key] = construct(model, None)
        found = Backbone(model, memory, self._sources[key])
        return self._backbones.setdefault(found.key, found)

    def stage_folder(self, id: str) -> Path:
        return self.folder / "stages" / id

    def build_stage(self, stage: StageBlock) -> Stage:
        return construct(stage.part, StageContext(self, stage.id))

    def data(self, part: Part, context: StageContext) -> DataSource:
        """Data sources are shared: the same block is read once."""
        if part.key not in self._data:
            self._data[part.key] = construct(part, context)
        return self._data[part.key]

    def records(self, loaded: LoadedPlugins) -> dict[str, StageRecord]:
        """What the run folder holds of each stage, with the fingerprint the recipe now gives it."""
        versions = {p.package: p.version for p in loaded.plugins}
        single_files = {p.package: p.file for p in loaded.plugins if p.file is not None}
        records: dict[str, StageRecord] = {}
        for id, stage in self.recipe.stages.items():
            parts = list(parts_of(stage.part))
            content = {
                "stage": id,
                "seed": self.recipe.seed,
                "options": plain(stage.part),
                "data": [self._data[p.key].fingerprint() for p in parts if p.key in self._data],
                "plugins": sorted({f"{p.package} {versions.get(p.package)}" for p in parts}),
                "needs": [records[need].fingerprint for need in stage.needs],
                "files": _hashes([file for part in parts for file in _files(part)]),
                "plugin_files": _hashes(
                    [single_files[p.package] for p in parts if p.package in single_files]
                ),
                "folders": _hashes(
                    [ref.folder / RECORD for ref in stage_refs(stage.part) if ref.folder]
                ),
                **self.backbone(id).describe(),
            }
            # Relative to the recipe, so that moving the project does not invalidate a run.
            text = json.dumps(content, sort_keys=True, default=str)
            text = text.replace(str(self.recipe.path.resolve().parent), ".")
            fingerprint = hashlib.sha256(text.encode()).hexdigest()
            produces = stage.part.component.produces
            records[id] = StageRecord.read(id, self.stage_folder(id), produces, fingerprint)
        return records


def _meaning(part: Part) -> str:
    return json.dumps(plain(part), sort_keys=True, default=str)


def _files(part: Part) -> list[Path]:
    """The files that a part's options name, such as a Python reward or a chat template."""
    values = (getattr(part.options, name) for name in type(part.options).model_fields)
    return [value for value in values if isinstance(value, Path) and value.is_file()]


def _hashes(files: list[Path]) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()}


class StageContext:
    """Implements rlhf_kit.interfaces.Context for one stage."""

    def __init__(self, run: RunContext, stage: str, backbone: Backbone | None = None) -> None:
        self._run, self.stage, self.seed = run, stage, run.recipe.seed
        self._backbone = run.backbone(stage) if backbone is None else backbone
        # Weak, so that weights go when the stage that loaded them is done.
        self._memories: WeakValueDictionary[str, Memory] = WeakValueDictionary()

    @property
    def tokenizer(self) -> Tokenizer:
        return self._backbone.tokenizer

    def tokenizer_of(self, of: StageRef | None) -> Tokenizer:
        return self._of(of).tokenizer

    def _of(self, ref: StageRef | None) -> Backbone:
        return self._backbone if ref is None else self._run.backbone(ref.stage)

    def build(self, part: Part) -> Any:
        if part.component.seam == "data":
            return self._run.data(part, self)
        return construct(part, self)

    def artifact(self, ref: StageRef | None) -> Path | None:
        if ref is None:
            return None
        return self._run.stage_folder(ref.stage) if ref.stage is not None else ref.folder

    def memory(self, of: StageRef | None = None) -> Memory:
        backbone = self._of(of)
        found = None if of is None else self._memories.get(backbone.key)
        if found is None:
            context = StageContext(self._run, self.stage, backbone)
            found = construct(backbone.memory, context, source=backbone.source)
            self._memories[backbone.key] = found
        return found


def construct(part: Part, context: StageContext | None, **extra: Any) -> Any:
    """Call a component's target with its options, and with the context if it asks for it.

    Raises:
        PluginError: the target cannot be imported or built; RlhfKitErrors pass through.
    """
    target = part.component.load()
    wants = inspect.signature(target).parameters
    if "context" in wants:
        extra = {**extra, "context": context}
    try:
        return target(part.options, **extra)
    except RlhfKitError:
        raise
    except Exception as error:
        cause = str(error).strip().partition("\n")[0]
        raise PluginError(
            f"{part.where}: {part.key}: {part.component.target} could not be built: "
            f"{type(error).__name__}: {cause}"
        ) from error

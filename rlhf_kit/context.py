"""The context of one run: builds parts, finds artifacts, knows what each stage depends on."""

from __future__ import annotations

import hashlib
import inspect
import json
from pathlib import Path
from typing import Any

from rlhf_kit.components import Part, StageRef
from rlhf_kit.errors import PluginError, RlhfKitError
from rlhf_kit.interfaces import DataSource, Memory, ModelSource, Stage, Tokenizer
from rlhf_kit.plugins import LoadedPlugins
from rlhf_kit.recipe import Recipe, plain
from rlhf_kit.recipe import Stage as StageBlock
from rlhf_kit.recipe.walk import parts_of, stage_refs
from rlhf_kit.stage_record import RECORD, StageRecord


class RunContext:
    """What all stages of a run share."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        self._data: dict[str, DataSource] = {}
        self.source: ModelSource = construct(recipe.model, None)
        self._tokenizer: Tokenizer | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            self._tokenizer = self.source.tokenizer()
        return self._tokenizer

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
        shared = {
            "seed": self.recipe.seed,
            "model": plain(self.recipe.model) | {"weights": self.source.fingerprint()},
            "memory": plain(self.recipe.memory),
            "backbone_files": _hashes([*_files(self.recipe.model), *_files(self.recipe.memory)]),
        }
        records: dict[str, StageRecord] = {}
        for id, stage in self.recipe.stages.items():
            parts = list(parts_of(stage.part))
            content = {
                "stage": id,
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
                **shared,
            }
            # Relative to the recipe, so that moving the project does not invalidate a run.
            text = json.dumps(content, sort_keys=True, default=str)
            text = text.replace(str(self.recipe.path.resolve().parent), ".")
            fingerprint = hashlib.sha256(text.encode()).hexdigest()
            produces = stage.part.component.produces
            records[id] = StageRecord.read(id, self.stage_folder(id), produces, fingerprint)
        return records


def _files(part: Part) -> list[Path]:
    """The files that a part's options name, such as a Python reward or a chat template."""
    values = (getattr(part.options, name) for name in type(part.options).model_fields)
    return [value for value in values if isinstance(value, Path) and value.is_file()]


def _hashes(files: list[Path]) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()}


class StageContext:
    """Implements rlhf_kit.interfaces.Context for one stage."""

    def __init__(self, run: RunContext, stage: str) -> None:
        self._run, self.stage, self.seed = run, stage, run.recipe.seed

    @property
    def tokenizer(self) -> Tokenizer:
        return self._run.tokenizer

    def build(self, part: Part) -> Any:
        if part.component.seam == "data":
            return self._run.data(part, self)
        return construct(part, self)

    def artifact(self, ref: StageRef | None) -> Path | None:
        if ref is None:
            return None
        return self._run.stage_folder(ref.stage) if ref.stage is not None else ref.folder

    def memory(self) -> Memory:
        part = self._run.recipe.memory
        return construct(part, self, source=self._run.source)


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

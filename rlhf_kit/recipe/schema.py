"""The grammar of a recipe file, and the recipe that comes out when everything is resolved."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from rlhf_kit.components import Options, Part
from rlhf_kit.seams import MEMORY, MODEL, OWN
from rlhf_kit.stage_options import CheckpointOptions

_LONGEST = 100  # characters of a name; folders are called so, and a file system takes 255


def _identifier(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", text):
        raise ValueError("should be made of letters, digits, - and _")
    if len(text) > _LONGEST:
        raise ValueError(f"has {len(text)} characters; should have at most {_LONGEST}")
    return text


def _stage_id(text: str) -> str:
    if text in TOP_LEVEL:
        raise ValueError("should not be a top-level key, or overrides could not tell the two apart")
    return text


def _as_block(value: Any) -> Any:
    if isinstance(value, str):
        return {"use": value}
    if not isinstance(value, dict):
        raise ValueError("should be a component's name, or a block with `use:` and its options")
    return value


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("should be a valid integer")
    return value


def _empty_if_null(value: Any) -> Any:
    return {} if value is None else value


Block = Annotated[dict[str, Any], BeforeValidator(_as_block)]
Identifier = Annotated[str, AfterValidator(_identifier)]
StageId = Annotated[str, AfterValidator(_identifier), AfterValidator(_stage_id)]


class RecipeFile(BaseModel):
    """The top level of a recipe file. A block is ``use:`` with options, or just a name."""

    model_config = ConfigDict(extra="forbid")

    name: Identifier = Field("", description="name of the run; default: the file's name")
    seed: Annotated[int, BeforeValidator(_no_truth)] = Field(
        0, ge=0, lt=2**63, description="seed of everything random"
    )
    plugins: list[str] = Field([], description="plugin files, relative to the recipe")
    model: Block = Field(description="the pretrained model and its tokenizer")
    engine: Block = Field(
        {"use": "single"}, description="who takes the optimizer steps, over which ranks"
    )
    memory: Block = Field(description="how policy, reference, value and reward share memory")
    data: Annotated[dict[Identifier, Block], BeforeValidator(_empty_if_null)] = Field(
        {}, description="named data, for the data slots of stages"
    )
    observers: Annotated[dict[Identifier, Block], BeforeValidator(_empty_if_null)] = Field(
        {}, description="who watches the run, by a name of your own; they change no result"
    )
    checkpoint: CheckpointOptions = Field(
        CheckpointOptions(), description="when stages save their place; changes no result"
    )
    stages: dict[StageId, Block] = Field(
        description="the stages by id, in the order they run", min_length=1
    )


TOP_LEVEL = tuple(RecipeFile.model_fields)


@dataclass(frozen=True)
class StageBlock:
    """One stage of a recipe; ``needs`` are the earlier stages it reads artifacts of."""

    id: str
    part: Part
    needs: list[str]


@dataclass(frozen=True)
class Recipe:
    """A recipe in which every name is found and every option is checked."""

    path: Path
    name: str
    seed: int
    plugins: list[Path]  # absolute, with those of the command line
    model: Part
    engine: Part
    memory: Part
    data: dict[str, Part]
    observers: dict[str, Part]
    stages: dict[str, StageBlock]
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)
    ambiguous: frozenset[tuple[str, str]] = frozenset()  # (seam, name) that need `package/name`

    def model_and_memory(self, stage: str | None) -> tuple[Part, Part]:
        """The model and memory blocks of a stage: its own where it has them, else the recipe's.

        A stage has its own where its options have a slot ``model`` or ``memory`` of that seam.
        """
        own = {} if stage is None else _own(self.stages[stage].part.options)
        return own.get(MODEL, self.model), own.get(MEMORY, self.memory)


def _own(options: Options) -> dict[str, Part]:
    """The parts in slots that are called like their seam, by seam."""
    slots = [name for name in OWN if name in type(options).model_fields]
    parts = {name: getattr(options, name) for name in slots}
    return {
        name: part
        for name, part in parts.items()
        if isinstance(part, Part) and part.component.seam == name
    }

"""Options of the data components. Torch-free."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from rlhf_kit import ModuleName, Options, RecipePath, StageRef, stage_ref
from rlhf_kit.components import in_recipe
from rlhf_kit.importable import why_no_attribute
from rlhf_kit_data.records import has_suffix

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def _local_or_hub(value: Any, info: ValidationInfo) -> Any:
    """A path if it looks like one, ends like one or is one; else what may be the id of a data set.

    An id that is also the name of a folder beside the recipe means the folder.
    """
    if not isinstance(value, str):
        return in_recipe(value, info) if isinstance(value, Path) else value
    path = in_recipe(value, info)
    named = value.startswith((".", "/", "~")) or has_suffix(value)
    return path if named or os.path.exists(path) or not _HUB_ID.fullmatch(value) else value


Source = Annotated[str | Path, BeforeValidator(_local_or_hub)]
"""A data set of the Hugging Face hub, or a local file or folder, relative to the recipe."""


class JsonlOptions(Options):
    """A JSONL file, one row a line. A row may state its ``split``; if not, its question decides."""

    path: RecipePath = Field(description="a .jsonl or .jsonl.gz file, relative to the recipe")


class CollectedOptions(Options):
    """What a collect stage has written."""

    start: StageRef = stage_ref(
        "comparisons", alias="from", description="the collect stage, or a folder of one"
    )


class TextOptions(Options):
    """English running text for the pretraining mix."""

    path: RecipePath | None = Field(None, description="a UTF-8 text file, relative to the recipe")
    module: ModuleName | None = Field(
        None, description='Python module with a dict "topics" of texts, such as pydoc_data.topics'
    )

    @model_validator(mode="after")
    def _one_source(self) -> TextOptions:
        if (self.path is None) == (self.module is None):
            raise ValueError("give exactly one of path and module")
        return self

    def problems(self) -> Mapping[str, str]:
        why = None if self.module is None else why_no_attribute(self.module, "topics")
        return {"module": f"should have a dict `topics`: {why}"} if why else {}


class RankingsOptions(Options):
    """Options of all published comparisons."""

    source: Source = Field(
        description="a hub id, or a local file or folder of the same form, relative to the "
        "recipe: .jsonl, .jsonl.gz or .parquet"
    )
    data_dir: str | None = Field(
        None, description="only this folder of the source, such as helpful-base; null: all"
    )
    revision: str | None = Field(
        None, description="branch, tag or commit on the hub; null: the newest"
    )
    validation_fraction: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="conversations held out where the source has no validation split of its own, "
        "by a hash of the first user turn",
    )
    test_fraction: float = Field(0.0, ge=0, lt=1, description="likewise of the test split; 0: none")
    limit: int | None = Field(
        None,
        ge=1,
        description="at most this many rows of each split that the source has, by a hash of the "
        "first user turn; null: all",
    )
    max_characters: int | None = Field(
        None,
        ge=1,
        description="drop rows whose longest conversation is longer: the cheap way to stay inside "
        "the context and the memory, at about 4 characters a token of English; null: keep all",
    )

    @property
    def path(self) -> Path | None:
        """Where the files are; None: on the hub."""
        if not isinstance(self.source, Path):
            return None
        return self.source / self.data_dir if self.data_dir else self.source

    @model_validator(mode="after")
    def _fits(self) -> RankingsOptions:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction and test_fraction leave nothing to train on")
        if self.revision is not None and isinstance(self.source, Path):
            raise ValueError(f"revision is for the hub; {self.source} is a local path")
        return self


class HHOptions(RankingsOptions):
    """Pairs of dialogues, chosen and rejected (arXiv:2204.05862)."""

    source: Source = Field(
        "Anthropic/hh-rlhf",
        description="a hub id, or a local file or folder of the same form, relative to the "
        "recipe: .jsonl, .jsonl.gz or .parquet",
    )


class OasstOptions(RankingsOptions):
    """Conversation trees with ranked replies (arXiv:2304.07327)."""

    source: Source = Field(
        "OpenAssistant/oasst2",
        description="a hub id, or a local file or folder of trees or of messages, relative to "
        "the recipe: .jsonl, .jsonl.gz or .parquet",
    )
    languages: tuple[str, ...] | None = Field(
        ("en",),
        min_length=1,
        description="leave out messages in other languages, and what follows them; null: none",
    )

"""Options of the data components. Torch-free."""

from __future__ import annotations

from pydantic import Field, model_validator

from rlhf_kit import Options, RecipePath, StageRef, stage_ref


class JsonlOptions(Options):
    """A JSONL file with one row a line. Rows may give their ``split``; if not, by a hash."""

    path: RecipePath = Field(description="the .jsonl file, relative to the recipe")


class CollectedOptions(Options):
    """What a collect stage has written."""

    start: StageRef = stage_ref(
        "comparisons", alias="from", description="the collect stage, or a folder of one"
    )


class TextOptions(Options):
    """English running text for the pretraining mix."""

    path: RecipePath | None = Field(None, description="a UTF-8 text file, relative to the recipe")
    module: str | None = Field(
        None, description='Python module with a dict "topics" of texts, such as pydoc_data.topics'
    )

    @model_validator(mode="after")
    def _one_source(self) -> TextOptions:
        if (self.path is None) == (self.module is None):
            raise ValueError("give exactly one of path and module")
        return self

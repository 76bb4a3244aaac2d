"""What a row of each kind must look like, and a check of whole files. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from rlhf_kit.errors import DataError

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Message(BaseModel):
    model_config = ConfigDict(extra="allow")
    role: Literal["system", "user", "assistant"]
    content: Text


class PromptRow(BaseModel):
    """``prompt`` or ``messages``; anything else travels along, for rewards to read."""

    model_config = ConfigDict(extra="allow")
    prompt: Text | None = None
    messages: list[Message] | None = Field(None, min_length=1)
    split: Literal["train", "validation", "test"] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> PromptRow:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of prompt and messages")
        if self.messages and self.messages[-1].role != "user":
            raise ValueError("the last message must be the user's")
        return self


class DemonstrationRow(PromptRow):
    """A prompt and the response a person wrote."""

    response: Text


class ComparisonRow(PromptRow):
    """K completions of one prompt and their ranks, 0 = best, equal = tied."""

    completions: list[Text] = Field(min_length=2)
    ranks: list[int]
    scores: list[float] | None = None  # the labeler's own, where it has them
    finished: list[bool] | None = None  # False: cut off before an end of sequence

    @model_validator(mode="after")
    def _same_length(self) -> ComparisonRow:
        for name in ("ranks", "scores", "finished"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self.completions):
                raise ValueError(
                    f"{name} has {len(value)} entries for {len(self.completions)} completions"
                )
        return self


KINDS: dict[str, type[BaseModel]] = {
    "prompts": PromptRow,
    "demonstrations": DemonstrationRow,
    "comparisons": ComparisonRow,
}


def read_rows(path: Path, kind: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSONL file, checked.

    Raises:
        DataError: the file is missing, not UTF-8, empty, or a line is not such a row. The message
            names the file and the line.
    """
    schema = KINDS[kind]
    if not path.is_file():
        raise DataError(f"{path}: no such file; a {kind} file has one JSON object a line")
    seen = False
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    seen = True
                    yield _row(line, schema, f"{path}:{number}")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    if not seen:
        raise DataError(f"{path}: the file has no rows")


def _row(line: str, schema: type[BaseModel], where: str) -> dict[str, Any]:
    try:
        return schema.model_validate(json.loads(line)).model_dump(exclude_none=True)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON: {error.msg} at column {error.colno}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        if first["type"] == "string_too_short":
            reason = "is empty"
        raise DataError(f"{where}: {key + ': ' if key else ''}{reason}") from error

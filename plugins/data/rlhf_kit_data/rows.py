"""What a row of each kind must look like, and a check of whole files. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from rlhf_kit.errors import DataError
from rlhf_kit_data.records import exists, json_lines

_ENCODER = json.JSONEncoder(ensure_ascii=False, check_circular=False)
Schema = TypeVar("Schema", bound=BaseModel)
Row = dict[str, Any]
# What the tensors hold: tokens and ranks as integers, scores as float32.
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Rank = Annotated[int, Field(ge=0, lt=2**31)]
_LARGEST = 2.0**128 - 2.0**104
Score = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Message(BaseModel):
    model_config = ConfigDict(strict=True)
    role: Literal["system", "user", "assistant"]
    content: Text


class PromptRow(BaseModel):
    """``prompt``, ``messages`` or ``token_ids``; anything else travels along, for rewards to read.

    Strict, since readers get the row as it is written: "true" must not pass for true.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False)
    prompt: Text | None = None
    messages: list[Message] | None = Field(None, min_length=1)
    token_ids: list[TokenId] | None = Field(None, min_length=1)  # of one model, as they are
    split: Literal["train", "validation", "test"] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> PromptRow:
        said = (self.prompt, self.messages, self.token_ids)
        if sum(value is not None for value in said) != 1:
            raise ValueError("give exactly one of prompt, messages and token_ids")
        if self.messages and self.messages[-1].role != "user":
            raise ValueError("the last message must be the user's")
        return self


class DemonstrationRow(PromptRow):
    """A prompt and the response a person wrote."""

    response: Text


class ComparisonRow(PromptRow):
    """K completions of one prompt and their ranks, 0 = best, equal = tied.

    A completion without a rank (None) was not judged, and takes part in no pair.
    """

    completions: list[Text] = Field(min_length=2)
    ranks: list[Rank | None]
    scores: list[Score] | None = None  # the labeler's own, where it has them
    finished: list[bool] | None = None  # False: cut off before an end of sequence

    @model_validator(mode="after")
    def _same_length(self) -> ComparisonRow:
        for name in ("ranks", "scores", "finished"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self.completions):
                raise ValueError(
                    f"{name} has {len(value)} entries for {len(self.completions)} completions"
                )
        ranked = sum(rank is not None for rank in self.ranks)
        if ranked < 2:
            raise ValueError(f"ranks has {ranked} that are not null; a comparison takes two")
        return self


KINDS: dict[str, type[BaseModel]] = {
    "prompts": PromptRow,
    "demonstrations": DemonstrationRow,
    "comparisons": ComparisonRow,
}


def has_pair(ranks: Sequence[int | None]) -> bool:
    """Whether one of the ranked completions is better than another."""
    return len({rank for rank in ranks if rank is not None}) > 1


def refuse_ties(where: object, rows: Iterable[tuple[str, bool]]) -> None:
    """Refuse comparisons that leave nothing to train on or to watch.

    Args:
        where: the file, for the message.
        rows: of each row its split, and whether it has a pair.

    Raises:
        DataError: all rows, all train rows or all validation rows are ties.
    """
    paired: dict[str, bool] = {}
    for split, pair in rows:
        paired[split] = paired.get(split, False) or pair
    all_ties = "ranks one completion above another; all are ties"
    if paired and not any(paired.values()):
        raise DataError(f"{where}: no row {all_ties}")
    for split in ("train", "validation"):
        if not paired.get(split, True):
            raise DataError(
                f"{where}: no row of split {split!r} {all_ties}; it takes one that does"
            )


def read_rows(path: Path, kind: str) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a JSONL file as they are written, each with its place, once checked.

    A null in an optional key of the kind says that the row does not have it, and is left out.

    Raises:
        DataError: the file is missing, empty, or a line is not such a row, and the message names
            the file and the line.
    """
    schema = KINDS[kind]
    there = exists(path)
    if not path.is_file() or path.suffix.lower() == ".parquet":
        reason = "not a JSONL file" if there else "no such file"
        raise DataError(f"{path}: {reason}; a {kind} file has one JSON object a line")
    optional = {name for name, field in schema.model_fields.items() if not field.is_required()}
    for where, record in json_lines(path):
        check(record, schema, where)
        row = {k: v for k, v in record.items() if v is not None or k not in optional}
        yield where, row


def written(row: Row) -> bytes:
    """A row as JSON text, which keeps all that JSON can say."""
    return _ENCODER.encode(row).encode()


def check(value: Any, schema: type[Schema], where: str, form: str = "") -> Schema:
    """``value`` as a ``schema``, or a DataError that says where, and what ``form`` it should have.

    The form is named only if keys are missing or of other types.
    """
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ").partition(" or instance of ")[0]
        if first["type"] == "string_too_short":
            reason = "is empty"
        form = f"; {form}" if form and first["type"] != "value_error" else ""
        raise DataError(f"{where}: {key + ': ' if key else ''}{reason}{form}") from error

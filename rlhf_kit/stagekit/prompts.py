"""Prompts as tokens: each is tokenised once, and padded only in a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_kit.errors import DataError
from rlhf_kit.interfaces import DataSource, Tokenizer
from rlhf_kit.stage_options import PromptOptions
from rlhf_kit.stagekit.left_out import LeftOut
from rlhf_kit.types import PlacedRow, Prompts, Ragged, Row, asked


def shown(row: Row) -> str:
    """How an error names a row: where it stands, if it knows, and what it is."""
    where = f"{row.where}: " if isinstance(row, PlacedRow) else ""
    return f"{where}{str(row.get('id') or asked(row))[:60]!r}"


@contextmanager
def at(row: Row) -> Iterator[None]:
    """What is wrong with ``row`` is said with the place where it stands, if it knows."""
    try:
        yield
    except DataError as error:
        if not isinstance(row, PlacedRow) or str(error).startswith(row.where):
            raise
        raise DataError(f"{row.where}: {error}") from error


def _prompt(row: Row, tokenizer: Tokenizer) -> list[int]:
    with at(row):
        return tokenizer.prompt(row)


@dataclass(frozen=True, eq=False)
class PromptSet:
    """N rows and the tokens of their prompts."""

    rows: Sequence[Row]
    tokens: Ragged
    pad: int

    @classmethod
    def of(cls, rows: Sequence[Row], tokenizer: Tokenizer) -> PromptSet:
        """All of ``rows``."""
        tokens = Ragged.of(_prompt(row, tokenizer) for row in rows)
        return cls(rows, tokens, tokenizer.pad_id)

    @classmethod
    def chosen(
        cls,
        rows: Sequence[Row],
        tokenizer: Tokenizer,
        split: str,
        left_out: LeftOut,
        *,
        longest: int | None,
        most: int | None = None,
        option: str = "",
        room: int = 0,
    ) -> PromptSet:
        """The first ``most`` rows whose prompt has at most ``longest`` tokens.

        Args:
            rows: of ``split``.
            tokenizer: of the model.
            split: its name, for ``left_out``, which hears what is not chosen.
            left_out: see there.
            longest: in tokens; None: any.
            most: None: all.
            option: what sets ``most``.
            room: tokens of an answer that must fit behind every prompt.

        Raises:
            DataError: no prompt is short enough, or one leaves no ``room`` in the context.
        """
        kept: list[Row] = []
        seen = 0

        def prompts() -> Iterator[list[int]]:
            nonlocal seen
            for row in rows:
                if most is not None and len(kept) == most:
                    return  # what is not wanted need not be tokenised
                seen += 1
                tokens = _prompt(row, tokenizer)
                if longest is None or len(tokens) <= longest:
                    kept.append(row)
                    yield tokens

        found = cls(kept, Ragged.of(prompts()), tokenizer.pad_id)
        if not kept:
            raise DataError(
                f"max_prompt_tokens: none of {len(rows)} prompts has at most {longest} tokens"
            )
        what = f"prompts of split {split}"
        left_out.note(seen - len(kept), seen, what, f"longer than max_prompt_tokens {longest}")
        left_out.note(len(rows) - seen, len(rows), what, f"more than {option} {most}")
        found._check(tokenizer, room)
        return found

    @classmethod
    def to_answer(
        cls,
        source: DataSource,
        split: str,
        options: PromptOptions,
        tokenizer: Tokenizer,
        left_out: LeftOut,
        *,
        most: int | None = None,
        option: str = "",
    ) -> PromptSet:
        """``chosen`` of one split of ``source``, with room for the answers that are to come."""
        return cls.chosen(
            source.split(split),
            tokenizer,
            split,
            left_out,
            longest=options.max_prompt_tokens,
            most=most,
            option=option,
            room=options.sampling.max_new_tokens,
        )

    @classmethod
    def join(cls, parts: Sequence[PromptSet]) -> PromptSet:
        """Several of one tokenizer, one after the other."""
        rows = [row for part in parts for row in part.rows]
        return cls(rows, Ragged.join([part.tokens for part in parts]), parts[0].pad)

    def _check(self, tokenizer: Tokenizer, room: int) -> None:
        for row, length in zip(self.rows, self.tokens.lengths.tolist(), strict=True):
            if room and length + room > tokenizer.max_length:
                raise DataError(
                    f"{shown(row)}: {length} tokens and {room} new ones exceed the "
                    f"context of {tokenizer.max_length}; shorten the prompt or lower max_new_tokens"
                )

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, index: Tensor) -> PromptSet:
        rows = [self.rows[i] for i in index.tolist()]
        return PromptSet(rows, self.tokens.select(index), self.pad)

    def first(self, count: int) -> PromptSet:
        """The first ``count`` of them."""
        return self.select(torch.arange(min(count, len(self))))

    def all(self) -> Prompts:
        """All of them in one batch."""
        return self.batch(torch.arange(len(self)))

    def batch(self, index: Tensor) -> Prompts:
        """Prompts ``index``, padded to the longest of them; one group per row.

        The place of a prompt in this set names its stream of draws.
        """
        chosen = self.select(index)
        tokens, mask = chosen.tokens.padded(self.pad, left=True)
        return Prompts(tokens, mask, chosen.rows, torch.arange(len(chosen)), index)

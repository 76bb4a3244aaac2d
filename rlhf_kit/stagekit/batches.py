"""Rows to tokens, with the checks that must come before any model is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from rlhf_kit.errors import DataError
from rlhf_kit.interfaces import Tokenizer
from rlhf_kit.stagekit.left_out import LeftOut
from rlhf_kit.stagekit.prompts import PromptSet, at, shown
from rlhf_kit.types import Comparisons, Ragged, Row, Texts

# Enough to tell perplexities apart, and few enough to measure often.
HELD_OUT_BLOCKS = 32
NO_PAIR = "comparisons: none of {} rows ranks one completion over another"


def _response(
    row: Row, prompt: Sequence[int], text: str, finished: bool, tokenizer: Tokenizer
) -> list[int]:
    """The tokens of a response, which must say something and fit behind its prompt."""
    with at(row):
        answer = tokenizer.response(text, finished=finished)
    if not text.strip():
        raise DataError(f"{shown(row)}: the response is empty")
    if len(prompt) + len(answer) > tokenizer.max_length:
        raise DataError(
            f"{shown(row)}: {len(prompt) + len(answer)} tokens exceed the context of "
            f"{tokenizer.max_length}"
        )
    return answer


def answered(
    prompts: PromptSet, answers: Iterable[tuple[str, bool]], tokenizer: Tokenizer
) -> Texts:
    """Prompts, each with its response (text, finished); only response tokens are targets.

    Raises:
        DataError: a text longer than the context, or an empty response.
    """

    def texts() -> Iterator[list[int]]:
        for i, (text, finished) in enumerate(answers):
            prompt = prompts.tokens[i]
            yield prompt + _response(prompts.rows[i], prompt, text, finished, tokenizer)

    return Texts(Ragged.of(texts()), prompts.tokens.lengths, tokenizer.pad_id)


def text_blocks(
    rows: Sequence[Row], tokenizer: Tokenizer, length: int, left_out: LeftOut, split: str
) -> Texts:
    """Running text cut into blocks of ``length`` tokens; every token but the first is a target.

    Documents are joined by the separator. Every block begins as the model's sequences do; what
    does not fill a block is left out.
    """
    stream: list[int] = []
    for row in rows:
        stream += [*tokenizer.text(row["text"]), tokenizer.separator_id]
    blocks = _blocks(stream, list(tokenizer.begin_ids), length)
    with at(rows[0]):  # whose file it is
        if not blocks:
            raise DataError(
                f"pretraining text: {len(stream)} tokens do not fill a block of {length}"
            )
    if length > tokenizer.max_length:
        raise DataError(
            f"pretraining blocks of {length} tokens exceed the context of {tokenizer.max_length}"
        )
    used = sum(map(len, blocks))
    what = f"tokens of text, split {split}"
    left_out.note(max(0, len(stream) - used), len(stream), what, "they fill no whole block")
    return Texts(Ragged.of(blocks), torch.ones(len(blocks), dtype=torch.long), tokenizer.pad_id)


def _blocks(stream: list[int], begin: list[int], length: int) -> list[list[int]]:
    blocks: list[list[int]] = []
    place = 0
    while True:
        # Where the separator is what a sequence begins with, it need not be written twice.
        prefix = [] if stream[place : place + len(begin)] == begin else begin
        block = prefix + stream[place : place + length - len(prefix)]
        if len(block) < length or len(prefix) >= length:
            return blocks
        blocks.append(block)
        place += length - len(prefix)


def held_out_blocks(blocks: Texts, left_out: LeftOut) -> Texts:
    """Of the validation split, as many as a perplexity is measured on while training."""
    left = len(blocks) - HELD_OUT_BLOCKS
    what = "blocks of text, split validation"
    left_out.note(max(0, left), len(blocks), what, f"perplexity is measured on {HELD_OUT_BLOCKS}")
    return blocks.first(HELD_OUT_BLOCKS)


def read_comparisons(rows: Sequence[Row], tokenizer: Tokenizer) -> Comparisons:
    """All completions of a prompt in one element. A rank of None means not ranked: -1.

    Raises:
        DataError: a prompt and a completion longer than the context, an empty completion, or no
            row that ranks one completion over another.
    """
    if not any(len({rank for rank in row["ranks"] if rank is not None}) > 1 for row in rows):
        raise DataError(NO_PAIR.format(len(rows)))
    widest = max(len(row["completions"]) for row in rows)
    ranks = torch.zeros((len(rows), widest), dtype=torch.long)
    mask = torch.zeros((len(rows), widest), dtype=torch.bool)
    gold = torch.zeros((len(rows), widest))
    prompts = PromptSet.of(rows, tokenizer).tokens

    def completions() -> Iterator[list[int]]:
        for g, row in enumerate(rows):
            prompt = prompts[g]
            finished = row.get("finished") or [True] * len(row["completions"])
            for text, ended in zip(row["completions"], finished, strict=True):
                yield _response(row, prompt, text, ended, tokenizer)

    for g, row in enumerate(rows):
        count = len(row["completions"])
        mask[g, :count] = True
        ranks[g, :count] = torch.tensor([-1 if rank is None else rank for rank in row["ranks"]])
        if "scores" in row:
            gold[g, :count] = torch.tensor(row["scores"], dtype=gold.dtype)
    has_gold = all("scores" in row for row in rows)
    return Comparisons(
        prompts,
        Ragged.of(completions()),
        ranks,
        mask,
        gold if has_gold else None,
        tokenizer.pad_id,
    )

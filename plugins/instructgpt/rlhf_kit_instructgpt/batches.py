"""Rows to tensors, with the checks that must come before any model is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from rlhf_kit.errors import DataError
from rlhf_kit.interfaces import Tokenizer
from rlhf_kit.ops.sequence import pad
from rlhf_kit.types import ComparisonBatch, PackedTexts, Prompts, Sampling, TextBatch
from rlhf_kit.types.samples import Row
from rlhf_kit_instructgpt.options import SamplingOptions


def sampling_of(options: SamplingOptions, generator: torch.Generator) -> Sampling:
    """How a stage samples."""
    return Sampling(options.max_new_tokens, options.temperature, generator)


def _shown(row: Row) -> str:
    return str(row.get("id") or row.get("prompt") or row["messages"][-1]["content"])[:60]


def check_prompts(rows: Iterable[Row], tokenizer: Tokenizer, room: int) -> None:
    """Raise DataError for a prompt that does not leave ``room`` tokens of context."""
    for row in rows:
        length = len(tokenizer.prompt(row))
        if length + room > tokenizer.max_length:
            raise DataError(
                f"prompt {_shown(row)!r}: {length} tokens and {room} new ones exceed the context "
                f"of {tokenizer.max_length}; shorten the prompt or lower max_new_tokens"
            )


def short_prompts(rows: Sequence[Row], tokenizer: Tokenizer, most: int | None) -> list[Row]:
    """The rows whose prompt has at most ``most`` tokens. Raises DataError when none has."""
    kept = [row for row in rows if most is None or len(tokenizer.prompt(row)) <= most]
    if not kept:
        raise DataError(f"max_prompt_tokens: none of {len(rows)} prompts has at most {most} tokens")
    return kept


def prompt_batch(rows: Sequence[Row], tokenizer: Tokenizer) -> Prompts:
    """One group per row."""
    tokens, mask = pad([tokenizer.prompt(row) for row in rows], tokenizer.pad_id, left=True)
    return Prompts(tokens, mask, list(rows), torch.arange(len(rows)))


def _response(
    row: Row, prompt: list[int], text: str, finished: bool, tokenizer: Tokenizer
) -> list[int]:
    """The tokens of a response, which must say something and fit behind its prompt."""
    answer = tokenizer.response(text, finished=finished)
    if not text.strip():
        raise DataError(f"row {_shown(row)!r}: the response is empty")
    if len(prompt) + len(answer) > tokenizer.max_length:
        raise DataError(
            f"row {_shown(row)!r}: {len(prompt) + len(answer)} tokens exceed the context of "
            f"{tokenizer.max_length}"
        )
    return answer


def answered(pairs: Iterable[tuple[Row, str, bool]], tokenizer: Tokenizer) -> TextBatch:
    """Prompts with responses (row, text, finished); only response tokens are targets.

    The target is laid by position, never by comparing with the pad id: where pad and
    end-of-sequence are one token, the end must survive in the labels.

    Raises:
        DataError: a text longer than the context, or an empty response.
    """
    tokens: list[list[int]] = []
    begins: list[int] = []
    for row, response, finished in pairs:
        prompt = tokenizer.prompt(row)
        answer = _response(row, prompt, response, finished, tokenizer)
        tokens.append(prompt + answer)
        begins.append(len(prompt))
    padded, mask = pad(tokens, tokenizer.pad_id)
    columns = torch.arange(padded.shape[1])
    return TextBatch(padded, mask, mask & (columns >= torch.tensor(begins)[:, None]))


def text_blocks(rows: Sequence[Row], tokenizer: Tokenizer, length: int) -> TextBatch:
    """Running text cut into blocks of ``length`` tokens; every token but the first is a target.

    Documents are joined by the separator. Every block begins as the model's sequences do; what
    does not fill a block is dropped.
    """
    stream: list[int] = []
    for row in rows:
        stream += [*tokenizer.text(row["text"]), tokenizer.separator_id]
    blocks = _blocks(stream, list(tokenizer.begin_ids), length)
    if not blocks:
        raise DataError(f"pretraining text: {len(stream)} tokens do not fill a block of {length}")
    if length > tokenizer.max_length:
        raise DataError(
            f"pretraining blocks of {length} tokens exceed the context of {tokenizer.max_length}"
        )
    tokens = torch.tensor(blocks)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    target = mask.clone()
    target[:, 0] = False
    return TextBatch(tokens, mask, target)


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


def comparison_batch(rows: Sequence[Row], tokenizer: Tokenizer) -> ComparisonBatch:
    """All completions of a prompt in one element. A rank of None means not ranked: -1.

    Raises:
        DataError: a prompt and a completion longer than the context, or an empty completion.
    """
    widest = max(len(row["completions"]) for row in rows)
    ranks = torch.zeros((len(rows), widest), dtype=torch.long)
    mask = torch.zeros((len(rows), widest), dtype=torch.bool)
    gold = torch.zeros((len(rows), widest))
    prompts: list[list[int]] = []
    completions: list[list[list[int]]] = []
    for g, row in enumerate(rows):
        count = len(row["completions"])
        mask[g, :count] = True
        ranks[g, :count] = torch.tensor([-1 if rank is None else rank for rank in row["ranks"]])
        if "scores" in row:
            gold[g, :count] = torch.tensor(row["scores"])
        finished = row.get("finished") or [True] * count
        prompts.append(tokenizer.prompt(row))
        completions.append(
            [
                _response(row, prompts[-1], text, ended, tokenizer)
                for text, ended in zip(row["completions"], finished, strict=True)
            ]
        )
    texts = PackedTexts.of(prompts, completions, tokenizer.pad_id)
    has_gold = all("scores" in row for row in rows)
    return ComparisonBatch(texts, ranks, mask, gold if has_gold else None)

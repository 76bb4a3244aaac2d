"""Comparisons as pairs of answers, or as answers judged one by one, for losses over policies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_kit.errors import DataError
from rlhf_kit.interfaces import Policy, Reference, Tokenizer
from rlhf_kit.stagekit.batches import NO_PAIR, answered
from rlhf_kit.stagekit.prompts import PromptSet
from rlhf_kit.types import (
    LabelledInputs,
    Masked,
    MismatchedInputs,
    PairInputs,
    Ragged,
    Row,
    TextBatch,
    Texts,
)


@dataclass(frozen=True, eq=False)
class Pairs:
    """N prompts, each with the better and the worse of two answers."""

    chosen: Texts
    rejected: Texts

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def lengths(self) -> Tensor:
        """[N] int64, in tokens, of the longer of the two."""
        return torch.maximum(self.chosen.lengths, self.rejected.lengths)

    def split(self, size: int) -> Iterator[Tensor]:
        """Rows in chunks of at most ``size``, for judging."""
        yield from torch.arange(len(self)).split(size)


@dataclass(frozen=True, eq=False)
class Labelled:
    """N prompts with an answer each, good or bad."""

    texts: Texts
    desirable: Tensor  # [N] bool
    mismatched: Texts  # the same prompts, each with the answer to another one

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def lengths(self) -> Tensor:
        """[N] int64, in tokens."""
        return self.texts.lengths

    def split(self, size: int) -> Iterator[Tensor]:
        """Rows in chunks of at most ``size``, for judging."""
        yield from torch.arange(len(self)).split(size)


def read_pairs(rows: Sequence[Row], tokenizer: Tokenizer) -> Pairs:
    """Every two completions of a comparison of which one is ranked better; ties drop.

    Raises:
        DataError: a text longer than the context, an empty one, or no pair at all.
    """
    found = [
        (row, better, worse)
        for row in rows
        for better, i in _ranked(row)
        for worse, j in _ranked(row)
        if i < j
    ]
    if not found:
        raise DataError(NO_PAIR.format(len(rows)))
    chosen, rejected = (
        _texts([(row, pair[side]) for row, *pair in found], tokenizer) for side in (0, 1)
    )
    return Pairs(chosen, rejected)


def read_labelled(rows: Sequence[Row], tokenizer: Tokenizer) -> Labelled:
    """The best and the worst completions of each comparison, each judged by itself.

    Raises:
        DataError: as ``read_pairs``; or only one prompt, which has no other's answers.
    """
    found: list[tuple[Row, int, bool]] = []
    for row in rows:
        ranks = [rank for _, rank in _ranked(row)]
        if len(set(ranks)) > 1:
            ends = min(ranks), max(ranks)
            found += [(row, k, rank == ends[0]) for k, rank in _ranked(row) if rank in ends]
    if not found:
        raise DataError(NO_PAIR.format(len(rows)))
    texts = _texts([(row, k) for row, k, _ in found], tokenizer)
    if len(set(_prompts(texts))) < 2:
        raise DataError(
            f"comparisons: all of {len(rows)} rows that rank one completion over another have the "
            "same prompt; two prompts at least are needed"
        )
    desirable = torch.tensor([best for _, _, best in found])
    return Labelled(texts, desirable, _mismatched(texts, tokenizer.max_length))


def _mismatched(texts: Texts, longest: int) -> Texts:
    """Each prompt with the answer to another one, cut where it would exceed the context.

    By texts in the order of their prompts, each answer is moved on by as many places as the most
    common prompt has texts: every answer is used once, so that desirable ones are as common as in
    the data. Only where one prompt has more than half of all texts are answers used twice.
    """
    begins, known = texts.begins.tolist(), _prompts(texts)
    order = sorted(range(len(known)), key=known.__getitem__)
    step = max(Counter(known).values())
    crossed: list[list[int]] = [[] for _ in order]
    for place, i in enumerate(order):
        other = place + step
        while known[order[other % len(order)]] == known[i]:
            other += 1
        j = order[other % len(order)]
        crossed[i] = [*texts.tokens[i][: begins[i]], *texts.tokens[j][begins[j] :]][:longest]
    return Texts(Ragged.of(crossed), texts.begins, texts.pad)


def _prompts(texts: Texts) -> list[int]:
    """A number for the prompt of each text, the same for the same tokens."""
    numbers: dict[tuple[int, ...], int] = {}
    begins = enumerate(texts.begins.tolist())
    return [numbers.setdefault(tuple(texts.tokens[i][:b]), len(numbers)) for i, b in begins]


def response_logprobs(policy: Reference, texts: TextBatch) -> Tensor:
    """[B] log-probabilities of whole answers, where the texts are: sums over what counts."""
    return policy.next_token_logprobs(texts).sum(1).to(texts.tokens.device)


def every_row(rows: Tensor) -> Masked:
    """What a loss over whole rows [B] counts: each of them."""
    return Masked(torch.ones(len(rows), dtype=torch.bool))


def pair_inputs(policy: Policy, reference: Reference, pairs: Pairs, rows: Tensor) -> PairInputs:
    """What a loss reads of the pairs ``rows`` [B]; the reference is asked without gradients."""
    chosen, rejected = pairs.chosen.select(rows), pairs.rejected.select(rows)
    with torch.no_grad():
        reference_chosen = response_logprobs(reference, chosen)
        reference_rejected = response_logprobs(reference, rejected)
    return PairInputs(
        response_logprobs(policy, chosen),
        response_logprobs(policy, rejected),
        reference_chosen,
        reference_rejected,
        chosen.predicted.sum(1),
        rejected.predicted.sum(1),
        every_row(rows).mask,
    )


def labelled_inputs(
    policy: Policy, reference: Reference, data: Labelled, rows: Tensor
) -> LabelledInputs:
    """What a loss reads of the answers ``rows`` [B]; see ``pair_inputs``."""
    texts = data.texts.select(rows)
    with torch.no_grad():
        fixed = response_logprobs(reference, texts)
    logprobs, tokens = response_logprobs(policy, texts), texts.predicted.sum(1)
    return LabelledInputs(logprobs, fixed, data.desirable[rows], tokens, every_row(rows).mask)


@torch.no_grad()
def mismatched_inputs(
    policy: Policy, reference: Reference, data: Labelled, rows: Tensor
) -> MismatchedInputs:
    """What a loss whose component needs "mismatched" observes of ``rows`` [B]."""
    texts = data.mismatched.select(rows)
    own, fixed = (response_logprobs(role, texts) for role in (policy, reference))
    return MismatchedInputs(own, fixed, every_row(rows).mask)


def _ranked(row: Row) -> list[tuple[int, int]]:
    """(completion, rank) of those that somebody ranked."""
    return [(k, rank) for k, rank in enumerate(row["ranks"]) if rank is not None and rank >= 0]


def _texts(chosen: Sequence[tuple[Row, int]], tokenizer: Tokenizer) -> Texts:
    prompts = PromptSet.of([row for row, _ in chosen], tokenizer)
    answers = (
        (row["completions"][k], bool((row.get("finished") or [True] * (k + 1))[k]))
        for row, k in chosen
    )
    return answered(prompts, answers, tokenizer)

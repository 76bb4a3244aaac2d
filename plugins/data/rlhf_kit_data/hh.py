"""Anthropic's helpful and harmless pairs (arXiv:2204.05862) as comparisons. Torch-free."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from rlhf_kit.errors import DataError
from rlhf_kit_data.options import HHOptions
from rlhf_kit_data.records import Records
from rlhf_kit_data.rows import check

COLUMNS = ("chosen", "rejected")

_TURN = re.compile(r"\n\n(Human|Assistant):")
_FORM = (
    'a pair is {"chosen": dialogue, "rejected": dialogue}; a dialogue is '
    r'"\n\nHuman: ...\n\nAssistant: ..."'
)
_ROLES = ("user", "assistant")


class Pair(BaseModel):
    """Two dialogues that differ in the last answer only."""

    chosen: str
    rejected: str


def rows(records: Records, options: HHOptions, dropped: Counter[str]) -> Iterator[dict[str, Any]]:
    """One comparison of two answers per pair; pairs of another form are dropped and counted.

    Raises:
        DataError: a record without the two texts, or more than half of all pairs are dropped.
    """
    total, bad = 0, Counter[str]()
    for where, record in records:
        total += 1
        pair = check(record, Pair, where, _FORM)
        chosen, rejected = _turns(pair.chosen), _turns(pair.rejected)
        if reason := _wrong(chosen, rejected):
            bad[reason] += 1
            continue
        yield {
            "messages": [
                {"role": role, "content": text}
                for role, text in zip(_ROLES * len(chosen), chosen[:-1], strict=False)
            ],
            "completions": [chosen[-1], rejected[-1]],
            "ranks": [0, 1],
        }
    dropped.update(bad)
    if bad.total() * 2 > total:
        why = ", ".join(f"{count} {reason}" for reason, count in bad.most_common())
        raise DataError(
            f"{options.source}: {bad.total()} of {total} pairs are no use: {why}; {_FORM}"
        )


def _turns(dialogue: str) -> list[str]:
    """The texts of a dialogue that alternates from a human's turn to an assistant's, else []."""
    before, *pieces = _TURN.split(dialogue)
    roles, texts = pieces[::2], [text.strip() for text in pieces[1::2]]
    alternating = roles == ["Human", "Assistant"] * (len(roles) // 2)
    return texts if alternating and not before.strip() else []


def _wrong(chosen: list[str], rejected: list[str]) -> str | None:
    """Why a pair is no comparison of two answers; None if it is one."""
    if not chosen or not rejected:
        return "pairs that do not alternate between Human and Assistant"
    if not all(chosen) or not all(rejected):
        return "pairs with an empty turn"
    if chosen[:-1] != rejected[:-1]:
        return "pairs that differ before the last answer"
    return "pairs of identical dialogues" if chosen == rejected else None

"""Who belongs to which split: the one rule that keeps a question on one side. Torch-free."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rlhf_kit_data.rows import Row

SPLITS = ("train", "validation", "test")

Key = bytes


def key_of(text: str) -> Key:
    return hashlib.sha256(text.encode()).digest()


def folded(text: str) -> str:
    """``text`` without its case, its spacing, forms of letters and invisible characters.

    Composed and decomposed, wide and narrow letters are the same (NFKC). Characters of category
    Cf, such as a zero width space or a soft hyphen, do not count.
    """
    if not text.isascii():
        shown = "".join(c for c in text if unicodedata.category(c) != "Cf")
        text = unicodedata.normalize("NFKC", shown).casefold()
        text = unicodedata.normalize("NFKC", text)  # which folding the case may undo
    return " ".join(text.casefold().split())


def opening(row: Row) -> str:
    """The first user turn, folded: what a whole conversation hangs on, a prompt alone too."""
    if "token_ids" in row:
        return f"tokens {row['token_ids']}"
    first = row.get("prompt")
    if first is None:
        first = next(m["content"] for m in row["messages"] if m["role"] == "user")
    return folded(str(first))


class Claim(NamedTuple):
    """A split that a key was given, and by which row."""

    split: str
    where: str


class Places:
    """The split of every key, claimed by a row that states it, or else by ``cut``.

    A row goes where its key goes, so that no key can be in two splits.
    """

    def __init__(self, cut: Callable[[Key], str]) -> None:
        self._cut = cut
        self._claims: dict[Key, Claim] = {}

    def claim(self, key: Key, split: str, where: str = "") -> Claim:
        """Who has the key now: the first to ask for it."""
        return self._claims.setdefault(key, Claim(split, where))

    def claimed(self, key: Key) -> bool:
        return key in self._claims

    def of(self, key: Key) -> str:
        claim = self._claims.get(key)
        return self._cut(key) if claim is None else claim.split


def held_out(validation: float, test: float) -> Callable[[Key], str]:
    """The fraction ``validation`` of all keys, then ``test`` of them; the rest is to train on.

    All sources look at the same hash of a key, so that a question which several of them have is
    on the same side in each. A test split that is asked for moves no validation row.
    """

    def cut(key: Key) -> str:
        place = int.from_bytes(key[:8], "big") / 2**64
        inside = place < validation + test
        return "validation" if place < validation else "test" if inside else "train"

    return cut


def divide(
    parts: Mapping[str, Sequence[Row]],
    dropped: Counter[str],
    *,
    validation: float,
    test: float,
    limit: int | None,
) -> tuple[list[tuple[Key, Row]], Places]:
    """Rows of a published source with their keys, and the splits of the keys.

    What the source keeps apart stays apart, and its ``test`` goes before its ``validation`` before
    its ``train``: a row is dropped, and counted, if its key is in an earlier one of them. A split
    that the source does not have is cut from its train rows, as the fraction ``validation`` or
    ``test`` of all keys. A single part of whatever name (a local folder has it only as
    "train") is cut as a whole. ``limit`` takes at most
    that many rows of each part of the source: whole conversations, by a hash.
    """
    if len(parts) == 1:
        parts = {"train": next(iter(parts.values()))}
    places = Places(
        held_out(
            0.0 if "validation" in parts else validation,
            0.0 if "test" in parts else test,
        )
    )
    found: list[tuple[Key, Row]] = []
    for name in reversed(SPLITS):
        keyed = [(key_of(opening(row)), row) for row in parts.get(name, ())]
        if name == "train":
            kept = [(key, row) for key, row in keyed if not places.claimed(key)]
        else:
            kept = [(key, row) for key, row in keyed if places.claim(key, name).split == name]
        dropped["rows of a conversation held out elsewhere"] += len(keyed) - len(kept)
        found += _first(kept, limit)
    return found, places


def _first(rows: list[tuple[Key, Row]], limit: int | None) -> list[tuple[Key, Row]]:
    """At most ``limit`` rows in their order, chosen by a hash other than that of the splits.

    Not the first rows: files are often sorted by where they came from.
    """
    if limit is None or len(rows) <= limit:
        return rows
    keys = [key_of(f"limit {opening(row)}") for _, row in rows]
    chosen = sorted(range(len(rows)), key=lambda i: (keys[i], i))[:limit]
    return [rows[i] for i in sorted(chosen)]

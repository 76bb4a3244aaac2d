"""Who belongs to which split: by a stable hash, so that equal prompts stay together. Torch-free."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

SPLITS = ("train", "validation", "test")

Rows = Sequence[dict[str, Any]]


def split_of(key: str) -> str:
    """The split of a row that does not say: 80/10/10 by a hash, so equal prompts stay together."""
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "little") % 10
    return SPLITS[max(0, bucket - 7)]


def opening(row: Mapping[str, Any]) -> str:
    """The first user turn, without its case and spacing: what a whole conversation hangs on."""
    first = next(m["content"] for m in row["messages"] if m["role"] == "user")
    return " ".join(first.casefold().split())


def divide(
    parts: Mapping[str, Rows],
    dropped: Counter[str],
    *,
    validation: float,
    test: float,
    limit: int | None,
) -> dict[str, list[dict[str, Any]]]:
    """Rows of a source by split; no opening is in two splits.

    What the source keeps apart stays apart, and its ``test`` goes before its ``validation`` before
    its ``train``: a row is dropped, and counted, if its opening is in an earlier one of them. A
    split that the source does not have is cut from its train rows, as the fraction ``validation``
    or ``test`` of all openings. A source without train rows is a single file of some other name,
    and is cut as a whole. ``limit`` takes at most that many rows of each part of the source: whole
    conversations, by a hash.
    """
    if not parts.get("train"):
        parts = {"train": [row for part in parts.values() for row in part]}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS}
    claimed: set[str] = set()
    for name in reversed(SPLITS):
        rows = [row for row in parts.get(name, ()) if opening(row) not in claimed]
        dropped["rows of a conversation held out elsewhere"] += len(parts.get(name, ())) - len(rows)
        claimed |= {opening(row) for row in rows}
        for row in _first(rows, limit):
            found[name].append(row)
    cuts = {
        "validation": 0.0 if parts.get("validation") else validation,
        "test": 0.0 if parts.get("test") else test,
    }
    rows, found["train"] = found["train"], []
    for row in rows:
        place = _fraction(opening(row))
        inside = place < cuts["validation"] + cuts["test"]
        # The validation rows do not move when a test split is asked for.
        name = "validation" if place < cuts["validation"] else "test" if inside else "train"
        found[name].append(row)
    return found


def _first(rows: Rows, limit: int | None) -> Rows:
    """At most ``limit`` rows in their order, chosen by a hash other than that of the splits.

    Not the first rows: files are often sorted by where they came from.
    """
    if limit is None or len(rows) <= limit:
        return rows
    keys = [_fraction(f"limit {opening(row)}") for row in rows]
    chosen = sorted(range(len(rows)), key=lambda i: (keys[i], i))[:limit]
    return [rows[i] for i in sorted(chosen)]


def _fraction(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64

"""A regular expression for many words at once, in the shape of a trie."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby


def any_of(words: Iterable[str]) -> str:
    """Matches the longest of ``words`` that begins at a place, and nothing where there are none.

    A plain alternation tries all of the words at every place; here each character is looked at
    once for all that begin alike.
    """
    found = sorted({word for word in words if word})
    return _any_of(found) if found else "(?!)"


def _any_of(words: list[str]) -> str:
    """``words`` are sorted, and none is there twice."""
    first, last = words[0], words[-1]
    size = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), None)
    prefix = first[:size] if size is not None else min(first, last, key=len)
    rests = [word[len(prefix) :] for word in words]
    optional = rests[0] == ""
    groups = [list(some) for _, some in groupby(rests[optional:], key=lambda rest: rest[0])]
    if not groups:
        return re.escape(prefix)
    branches = "|".join(map(_any_of, groups))
    return f"{re.escape(prefix)}(?:{branches}){'?' if optional else ''}"

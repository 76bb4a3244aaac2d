"""Published comparisons, from raw records to rows by split. Torch-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rlhf_kit.errors import DataError
from rlhf_kit_data import hh, oasst
from rlhf_kit_data.options import RankingsOptions
from rlhf_kit_data.records import Parts, local_parts
from rlhf_kit_data.rows import has_pair, refuse_ties
from rlhf_kit_data.splits import Key, Places, divide

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Rankings:
    """Comparisons with their keys, the split of each key, and what was dropped by reason."""

    rows: list[tuple[Key, dict[str, Any]]]
    places: Places
    dropped: dict[str, int]


@dataclass(frozen=True)
class Form:
    """How a published data set writes its comparisons."""

    columns: tuple[str, ...]
    rows: Callable[..., Iterator[dict[str, Any]]]


FORMS = {"hh_rlhf": Form(hh.COLUMNS, hh.rows), "oasst": Form(oasst.COLUMNS, oasst.rows)}


def local_rankings(form: str, options: RankingsOptions) -> Rankings:
    """The comparisons of local files.

    Raises:
        DataError: see :func:`rankings`; or there is no such file.
    """
    assert options.path is not None
    return rankings(form, options, local_parts(options.path, FORMS[form].columns))


def rankings(form: str, options: RankingsOptions, parts: Parts) -> Rankings:
    """The comparisons in ``parts``.

    Raises:
        DataError: a record is not of the form, or nothing is left that could be compared, in all or
            of a split that is trained on or watched.
    """
    dropped: Counter[str] = Counter()
    kept: dict[str, Rows] = {}
    for name, records in parts.items():
        kept[name] = []
        for row in FORMS[form].rows(records, options, dropped):
            if options.max_characters is not None and characters(row) > options.max_characters:
                dropped[f"rows longer than {options.max_characters} characters"] += 1
            else:
                kept[name].append(row)
    rows, places = divide(
        kept,
        dropped,
        validation=options.validation_fraction,
        test=options.test_fraction,
        limit=options.limit,
    )
    counted = {reason: count for reason, count in sorted(dropped.items()) if count}
    pairs = [(places.of(key), has_pair(row["ranks"])) for key, row in rows]
    if not any(pair for _, pair in pairs):
        why = ", ".join(f"{count} {reason}" for reason, count in counted.items())
        raise DataError(
            f"{options.source}: no comparison with a better and a worse answer is left"
            + (f"; dropped were {why}" if why else "")
        )
    refuse_ties(options.source, pairs)
    return Rankings(rows, places, counted)


def characters(row: dict[str, Any]) -> int:
    """The length of the longest conversation of a comparison, without what a template adds."""
    return sum(len(m["content"]) for m in row["messages"]) + max(map(len, row["completions"]))

"""Files in the project's own form, and the split of each of their rows. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rlhf_kit.errors import DataError
from rlhf_kit_data.rows import has_pair, read_rows, refuse_ties, written
from rlhf_kit_data.splits import Key, Places, held_out, key_of, opening

COLLECTED = "comparisons.jsonl"  # in the folder of a collect stage
# Of the questions whose rows do not say.
VALIDATION, TEST = 0.1, 0.1


@dataclass(frozen=True)
class PlacedRows:
    """The rows of a file, (key, place in the file, text) each, and the split of each key."""

    rows: list[tuple[Key, str, bytes]]
    places: Places


def read_placed(path: Path, kind: str) -> PlacedRows:
    """The rows of a file of ``kind``. A row that states no split goes where its question goes.

    Raises:
        DataError: see :func:`rlhf_kit_data.rows.read_rows`; or two rows that begin with the same
            question state different splits, and the message names both lines; or there are
            comparisons, but those of a split that is trained on or watched are all ties.
    """
    found: list[tuple[Key, str, bytes]] = []
    places, against = Places(held_out(VALIDATION, TEST)), list[str]()
    pairs: dict[Key, bool] = {}
    for where, row in read_rows(path, kind):
        key, split = key_of(opening(row)), row.get("split")
        found.append((key, where, written(row)))
        if kind == "comparisons":
            pairs[key] = pairs.get(key, False) or has_pair(row["ranks"])
        if split is None:
            continue
        claim = places.claim(key, split, where)
        if claim.split != split:
            against.append(
                f"{where}: split: is {split!r}, but {claim.where} begins with the same question "
                f"and is in {claim.split!r}; give both rows the same split"
            )
    if against:
        more = f" (and so in {len(against) - 1} more rows)" if len(against) > 1 else ""
        raise DataError(against[0] + more)
    refuse_ties(path, ((places.of(key), pair) for key, pair in pairs.items()))
    return PlacedRows(found, places)


def refuse_across(files: Iterable[PlacedRows]) -> None:
    """Refuse a question that one file holds out and another one trains on.

    Raises:
        DataError: there is one; the message names a line of both files.
    """
    first: dict[tuple[Key, bool], tuple[str, str]] = {}  # (key, trained on) -> split and line
    for file in files:
        for key, where, _ in file.rows:
            split = file.places.of(key)
            first.setdefault((key, split == "train"), (split, where))
            other = first.get((key, split != "train"))
            if other is not None:
                raise DataError(
                    f"{where}: split: is {split!r}, but {other[1]} begins with the same question "
                    f"and is in {other[0]!r}; write the same split into both rows, since what is "
                    f"held out in one file must not be trained on in another"
                )

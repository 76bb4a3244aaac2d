"""Which split the name of a file, of its folders, or of a hub's split speaks of. Torch-free."""

from __future__ import annotations

import re
from pathlib import Path

from rlhf_kit.errors import DataError

# The words of the `datasets` library, so that a folder reads as it would on the hub.
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT = {word: split for split, words in _WORDS.items() for word in words}
# Apart from its neighbours: "train-0" and "test_prefs", not "latest" or "developers".
_WORD = re.compile(rf"(?:^|[-_. 0-9])({'|'.join(_SPLIT)})(?=[-_. 0-9]|$)", re.IGNORECASE)


def part_name(name: str, where: str | Path) -> str:
    """The split that ``name``, a relative path or a split of the hub, speaks of; else "train".

    Raises:
        DataError: it speaks of two, such as "test/train-0.parquet"; ``where`` is named.
    """
    found = [(word, _SPLIT[word.lower()]) for piece in Path(name).parts for word in _words(piece)]
    if len({split for _, split in found}) > 1:
        said = " and ".join(f"{word!r} ({split})" for word, split in found)
        raise DataError(f"{where}: its name says {said}; rename it so that it says one split")
    return found[0][1] if found else "train"


def _words(piece: str) -> list[str]:
    return [match[1] for match in _WORD.finditer(piece)]

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
# Almost the name of a part that is held out: "tests", "testset", "split=test", "test(1)", "myTest".
_HELD = "|".join(word for word, split in _SPLIT.items() if split != "train")
_ENDINGS = "s|sets?|data|files?|parts?|splits?|rows"
_ALMOST = re.compile(rf"(?<![^\W\d_])({_HELD})(?:{_ENDINGS})?(?![^\W\d_])", re.IGNORECASE)
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


def part_name(name: str, where: str | Path) -> str:
    """The split that ``name``, a relative path or a split of the hub, speaks of; else "train".

    Raises:
        DataError: it speaks of two, such as "test/train-0.parquet", or almost of one that is held
            out, such as "tests"; ``where`` is named.
    """
    found = [(word, _SPLIT[word.lower()]) for piece in Path(name).parts for word in _words(piece)]
    if len({split for _, split in found}) > 1:
        said = " and ".join(f"{word!r} ({split})" for word, split in found)
        raise DataError(f"{where}: its name says {said}; rename it so that it says one split")
    stated = found[0][1] if found else "train"
    for piece in Path(name).parts:
        for match in _ALMOST.finditer(_CAMEL.sub("_", piece)):
            almost = _SPLIT[match[1].lower()]
            if almost != stated:
                raise DataError(
                    f"{where}: {piece!r} may mean the {almost} split, but is not a name of it; "
                    f"rename it to {almost!r}, or so that it does not say {match[1]!r}"
                )
    return stated


def _words(piece: str) -> list[str]:
    return [match[1] for match in _WORD.finditer(piece)]

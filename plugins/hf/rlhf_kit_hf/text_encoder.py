"""Text to tokens in which only the template writes control tokens: content is data.

A tokenizer turns the text of a control token into the token wherever it stands. Here the places
where content says one are marked before the template is filled. Text without a mark goes through
the tokenizer as ever. Text with one goes through a copy of it that knows each control token by a
private character only: those that the template wrote are replaced by theirs, and what content says
is cut like any other text, in its place, with the neighbours that it has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer as Core

from rlhf_kit.errors import DataError
from rlhf_kit_hf.any_of import any_of

MARK = "\U0010fffd"
_FIRST_ALIAS = 0x100000  # of the private plane that ends with MARK


class TextEncoder:
    """Encodes text with a transformers tokenizer.

    Args:
        hf: the tokenizer.
        controls: text of every control token -> its id.
    """

    def __init__(self, hf: Any, controls: Mapping[str, int]) -> None:
        self._hf, self._controls = hf, dict(controls)
        names = list(self._controls)
        # The tokenizer, too, takes the leftmost and then the longest.
        self._pattern = re.compile(any_of(names))
        self._anywhere = re.compile(f"(?={any_of(names)})")
        self._heads = {name[:n] for name in names for n in range(1, len(name))}
        self._tails = {name[n:] for name in names for n in range(1, len(name))}
        self._all = "\0".join(names)
        self._longest = max(map(len, names), default=0)
        self._normaliser = getattr(getattr(hf, "backend_tokenizer", None), "normalizer", None)
        # The unknown token stands for ordinary characters too.
        self._watched = frozenset(self._controls.values()) - {hf.unk_token_id}

    def marked(self, data: str) -> str:
        """``data`` with a mark before all that is a control token, or part of one at an end of it.

        Raises:
            DataError: it also has the private characters that stand for control tokens here.
        """
        places = sorted(self._places(data))
        if not places and self._says_normalised(data):
            places = [len(data) - len(data.lstrip())]
        if MARK in data or (places and any(ord(character) >= _FIRST_ALIAS for character in data)):
            raise DataError(
                f"{data[:60]!r}: holds private characters from U+100000 on, which stand for marks "
                "and control tokens here; leave them out"
            )
        if not places:
            return data
        ends = [*places[1:], len(data)]
        return data[: places[0]] + "".join(
            MARK + data[begin:end] for begin, end in zip(places, ends, strict=True)
        )

    def _places(self, data: str) -> set[int]:
        found = {match.start() for match in self._anywhere.finditer(data)}
        # What a template writes beside it could complete a token; templates trim, too.
        begin, end = len(data) - len(data.lstrip()), len(data.rstrip())
        sizes = range(1, min(self._longest, end - begin + 1))
        found |= {end - n for n in sizes if data[end - n : end] in self._heads}
        if any(data[begin : begin + n] in self._tails for n in sizes):
            found.add(begin)
        if 0 < end - begin < self._longest and data[begin:end] in self._all:
            found.add(begin)
        return found

    def _says_normalised(self, data: str) -> bool:
        """Some cores look for control tokens, or for pieces called so, in normalised text."""
        text = self._normalised(data)
        return text != data and bool(self._places(text))

    def _normalised(self, data: str) -> str:
        return data if self._normaliser is None else str(self._normaliser.normalize_str(data))

    def marked_name(self, name: str) -> str:
        """``name`` of a field, marked where it says a control token; others are looked up."""
        if self._pattern.search(name) or self._pattern.search(self._normalised(name)):
            return self.marked(name)
        return name

    def controls(self, ids: Sequence[int]) -> list[int]:
        """The control tokens among ``ids``, but the unknown one, which also stands for letters."""
        return [token for token in ids if token in self._watched]

    def __call__(self, text: str) -> list[int]:
        """Tokens of ``text``, in which no mark stands before what is a control token.

        Raises:
            DataError: the tokenizer makes a control token out of content whatever one does.
        """
        bare = text.replace(MARK, "")
        whole = list(self._hf(bare, add_special_tokens=False)["input_ids"])
        if MARK not in text:
            return whole
        written = [self._controls[match[0]] for match in self._written(text)]
        if sum(1 for _ in self._pattern.finditer(bare)) == len(written):
            # What is marked could have become part of a control token, and has not. Some
            # tokenizers miss a few of their own.
            known, rest = set(self._controls.values()), iter(written)
            if all(token in rest for token in whole if token in known):
                return whole
        ids = self._encoded_apart(text)
        if self.controls(ids) != self.controls(written):
            raise DataError(
                f"{bare[-60:]!r}: the tokenizer reads a control token in it, one "
                f"of {sorted(self._controls)[:8]}, and has no other way to write that text"
            )
        return ids

    def _encoded_apart(self, text: str) -> list[int]:
        core, aliases, back = self._apart
        pieces: list[str] = []
        done = 0
        for match in self._written(text):
            pieces += [text[done : match.start()], aliases[match[0]]]
            done = match.end()
        pieces.append(text[done:])
        found = core.encode("".join(pieces).replace(MARK, ""), add_special_tokens=False).ids
        return [back.get(token, token) for token in found]

    def _written(self, text: str) -> Iterator[re.Match[str]]:
        """The control tokens without a mark."""
        at = 0
        while match := self._pattern.search(text, at):
            if text.endswith(MARK, 0, match.start()):
                # One of the template's may begin inside what content says.
                at = match.start() + 1
            else:
                yield match
                at = match.end()

    @cached_property
    def _apart(self) -> tuple[Core, dict[str, str], dict[int, int]]:
        """The copy, its name for each control token, and their ids in it -> the tokenizer's."""
        if not getattr(self._hf, "is_fast", False):
            raise DataError(
                f"{type(self._hf).__name__} is a slow tokenizer, which makes a control token of "
                "text that looks like one; leave such rows out, or convert the tokenizer"
            )
        aliases = {name: chr(_FIRST_ALIAS + i) for i, name in enumerate(self._controls)}
        core = _renamed(self._hf.backend_tokenizer, aliases)
        back = {_id(core, alias): self._controls[name] for name, alias in aliases.items()}
        return core, aliases, back


def _id(core: Core, token: str) -> int:
    found = core.token_to_id(token)
    assert found is not None  # it was added a moment ago
    return found


def _renamed(core: Core, aliases: Mapping[str, str]) -> Core:
    """A copy of ``core`` that knows the control tokens by their aliases alone."""
    content = json.loads(core.to_str())
    content |= {"truncation": None, "padding": None, "post_processor": None}
    for token in content["added_tokens"]:
        token["content"] = aliases.get(token["content"], token["content"])
    # Cores that look whole words up, or cut text into the likeliest pieces, would find them among
    # their pieces. A single character is needed for the text that holds it.
    pieces = {name: alias for name, alias in aliases.items() if len(name) > 1}
    model = content["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {pieces.get(name, name): i for name, i in vocabulary.items()}
    else:
        model["vocab"] = [[pieces.get(name, name), score] for name, score in vocabulary]
    if "merges" in model:
        model["merges"] = [[a, b] for a, b in model["merges"] if not {a, b, a + b} & pieces.keys()]
    if model.get("unk_token") in pieces:
        model["unk_token"] = pieces[model["unk_token"]]
    return Core.from_str(json.dumps(content))

"""Text to tokens through a transformers tokenizer and its chat template."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from rlhf_kit.errors import DataError, RecipeError
from rlhf_kit.interfaces import Tokenizer
from rlhf_kit.types import Row, asked
from rlhf_kit_hf.chat_template import ChatTemplate
from rlhf_kit_hf.end_tokens import end_tokens
from rlhf_kit_hf.options import TextOptions
from rlhf_kit_hf.text_encoder import MARK, TextEncoder

_SENTENCE = "Two tokenizers that read this alike, 100 % of it, are taken for one"


def reading(tokenizer: Tokenizer) -> str:
    """A short hash of what a tokenizer makes of a prompt and of text, and of its ends."""
    ids = [
        tokenizer.prompt({"prompt": _SENTENCE}),
        tokenizer.text(f"{_SENTENCE}\n"),
        list(tokenizer.begin_ids),
        list(tokenizer.end_ids),
    ]
    return hashlib.sha256(str(ids).encode()).hexdigest()[:12]


class ChatTokenizer:
    """Implements rlhf_kit.interfaces.Tokenizer.

    Args:
        tokenizer: of transformers.
        options: how text becomes tokens.
        context: what the model was made for, in tokens.
        ends: what the model's configuration says ends a response.
    """

    def __init__(
        self, tokenizer: Any, options: TextOptions, context: int | None, ends: Sequence[Any] = ()
    ) -> None:
        self.hf, self._system = tokenizer, options.system
        added = {token.content: id for id, token in tokenizer.added_tokens_decoder.items()}
        self._template = _template(tokenizer, options)
        ending, turns = None, ""
        if self._template is not None:
            ending, turns = self._template.ending(added), self._template.turns
        of_template = None if ending is None else added[ending[0]]
        self.end_ids = end_tokens(tokenizer, options.end_tokens, ends, of_template, added)
        self.eos_id: int = self.end_ids[0]
        # What a template writes around an answer, and where it writes nothing.
        self._lead, self._gap = "\n\n", ""
        if self._template is not None:
            self._lead, self._gap = self._template.lead, self._template.gap
        self._space = "" if ending is None or of_template != self.eos_id else ending[1]
        special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        controls = {
            text: id
            for text, id in added.items()
            # Added tokens may be text of some use, such as runs of spaces: those that a template
            # writes around its turns steer a conversation.
            if id in special or id in self.end_ids or (text in turns and not text.isspace())
        }
        self._hidden = {*controls.values(), *self.end_ids}
        self._encode = TextEncoder(tokenizer, controls)
        self.begin_ids = _beginning(tokenizer)
        eos: int | None = tokenizer.eos_token_id
        self.separator_id: int = self.eos_id if eos is None else eos
        pad: int | None = tokenizer.pad_token_id
        self.pad_id: int = self.separator_id if pad is None else pad
        self.max_length = options.max_length or context or 2**20

    def prompt(self, row: Row) -> list[int]:
        if "token_ids" in row:
            return self._given(row)
        messages = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
        if self._system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self._system}, *messages]
        try:
            text = self._rendered(messages)
            ids = self._encode(text)
            if self._template is not None:
                self._check_controls(ids, messages, text.replace(MARK, ""))
        except DataError as error:
            raise DataError(f"prompt {_shown(row)!r}: {error}") from error
        return ids if self._begun(ids, text) else [*self.begin_ids, *ids]

    def _given(self, row: Row) -> list[int]:
        ids = [int(token) for token in row["token_ids"]]
        for token in ids:
            if not 0 <= token < len(self.hf):
                raise DataError(
                    f"prompt {_shown(row)!r}: {token} is no token of this model; the ids are 0 to "
                    f"{len(self.hf) - 1}"
                )
        return ids

    def _begun(self, ids: list[int], text: str) -> bool:
        """Whether the template has written the beginning, behind a line break or in part."""
        begin = list(self.begin_ids)
        if not begin or ids[: len(begin)] == begin:
            return True
        first = self.hf.convert_ids_to_tokens(begin[0])
        return begin[0] in self._hidden and text.lstrip().startswith(first)

    def _check_controls(
        self, ids: list[int], messages: Sequence[Mapping[str, Any]], text: str
    ) -> None:
        """Refuse what becomes a control token only where the template changes contents."""
        assert self._template is not None
        changed = _changed(messages, text)
        if not changed:
            return
        neutral = [
            _with_texts(
                message,
                lambda said: "x" if said in changed else self._encode.marked(said),
                self._encode.marked_name,
            )
            for message in messages
        ]
        expected = self._encode(self._template.render(neutral))
        if self._encode.controls(ids) != self._encode.controls(expected):
            raise DataError(
                f"the chat template changes {min(changed)[:60]!r}, and what it writes has other "
                "control tokens than for a plain text there; leave the row out"
            )

    def _rendered(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt as text, with marks where contents say what is no control token there."""
        names = self._encode.marked_name
        marked = [_with_texts(message, self._encode.marked, names) for message in messages]
        if self._template is None:
            # A base model without a template continues plain text.
            return "\n\n".join(message["content"] for message in marked) + self._lead
        plain = self._template.render(messages)
        if marked == list(messages):
            return plain
        rendered = self._template.render(marked)
        if rendered.replace(MARK, "") != plain:
            said = next(own for m, own in zip(marked, messages, strict=True) if m != own)
            raise DataError(
                f"the chat template takes contents apart, and {str(said['content'])[:60]!r} says "
                "what is a control token of this model; leave the row out"
            )
        return rendered

    def response(self, text: str, *, finished: bool = True) -> list[int]:
        closing = self._space if finished else ""
        ids = self._of_content(
            text, lambda marked: self._behind_prompt(self._gap + marked + closing)
        )
        inner = next((token for token in ids if token in self.end_ids), None)
        if inner is not None:
            raise DataError(
                f"response {text[:60]!r}: says {self.hf.decode([inner])!r}, which ends a response "
                "(model.end_tokens); leave it out of the text or of the list"
            )
        return ids + ([self.eos_id] if finished else [])

    def _behind_prompt(self, text: str) -> list[int]:
        """As it is cut behind a prompt: there, many tokenizers see no beginning of a word."""
        before, both = self._before, self._encode(self._lead + text)
        return both[len(before) :] if both[: len(before)] == before else self._encode(text)

    @cached_property
    def _before(self) -> list[int]:
        return self._encode(self._lead)

    def text(self, text: str) -> list[int]:
        return self._of_content(text, self._encode)

    def _of_content(self, text: str, encode: Callable[[str], list[int]]) -> list[int]:
        """Tokens of text without a template, in which there is no control token."""
        marked = self._encode.marked(text)
        ids = encode(marked)
        if marked == text and self._encode.controls(ids):
            # Its own pieces make one, which the search in the text has not seen.
            return encode(MARK + text)
        return ids

    def beyond(self, rows: int) -> dict[str, int]:
        """The tokens that an embedding of ``rows`` has no row for, text -> id, in order.

        But those that nothing here writes: some models are published with a control token more.
        """
        silent = {id for id, token in self.hf.added_tokens_decoder.items() if token.special}
        turns = self._template.turns if self._template is not None else ""
        written = {self.pad_id, self.separator_id, *self.begin_ids, *self.end_ids}
        found = sorted((id, text) for text, id in self.hf.get_vocab().items() if id >= rows)
        return {t: id for id, t in found if id not in silent or id in written or t in turns}

    def decode(self, tokens: list[int]) -> str:
        kept = [token for token in tokens if token not in self._hidden]
        return str(self.hf.decode(kept, skip_special_tokens=True)).strip()


def _template(hf: Any, options: TextOptions) -> ChatTemplate | None:
    own = None
    if options.chat_template is not None:
        try:
            own = options.chat_template.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise RecipeError(
                f"model.chat_template: {options.chat_template} is not UTF-8: {error}"
            ) from error
    if own is None and hf.chat_template is None:
        for name in ("template_arguments", "template_date"):
            if getattr(options, name):
                raise RecipeError(
                    f"model.{name}: the model has no chat template that could read it; "
                    "leave it out, or give a chat_template"
                )
        return None
    template = ChatTemplate(hf, own, options.template_arguments, options.template_date)
    if template.unclosed is not None:
        warnings.warn(
            f"model: its chat template opens {template.unclosed} for the answer, so that answers "
            "are trained, sampled and scored inside it; unless that is meant, write "
            "template_arguments: {enable_thinking: false} where the template reads it, or give a "
            "chat_template without it",
            stacklevel=2,
        )
    return template


def _beginning(hf: Any) -> tuple[int, ...]:
    """What the tokenizer itself puts before a text: nothing, or what its model was trained with."""
    plain = list(hf("x", add_special_tokens=False)["input_ids"])
    whole = list(hf("x")["input_ids"])
    for begin in range(len(whole) - len(plain) + 1):
        if whole[begin : begin + len(plain)] == plain:
            return tuple(whole[:begin])
    return ()


def _with_texts(value: Any, change: Callable[[str], str], names: Callable[[str], str]) -> Any:
    """A message with all of its texts changed but the role, and its names by ``names``."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {
            names(k): v if k == "role" else _with_texts(v, change, names) for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [_with_texts(item, change, names) for item in value]
    return value


def _changed(messages: Sequence[Mapping[str, Any]], text: str) -> set[str]:
    """The texts that do not stand in ``text`` in their order; words alone make no token."""
    changed, at = set(), 0

    def look_for(said: str) -> str:
        nonlocal at
        place = text.find(said.strip(), at)
        if place >= 0:
            at = place + len(said.strip())
        elif not said.isidentifier():
            changed.add(said)
        return said

    for message in messages:
        _with_texts(message, look_for, str)
    return changed


def _shown(row: Row) -> str:
    return str(row.get("id") or asked(row))[:60]

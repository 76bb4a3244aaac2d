"""A chat template, and what it writes around the contents it is given."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

from rlhf_kit.errors import DataError, RecipeError, did_you_mean

Message = Mapping[str, Any]

# Contents that no template writes by itself.
_ASKED, _ANSWERED, _SYSTEM = "\U000f0000", "\U000f0001", "\U000f0002"
_NOW = "strftime_now"
_OPENED = re.compile(r"<([^<>/|\s]{1,24})>|\[([A-Z_]{2,24})\]")


class ChatTemplate:
    """Renders conversations.

    Args:
        hf: a transformers tokenizer.
        text: of the template, or None for the tokenizer's own.
        arguments: passed on to the template.
        date: what the template takes for today.

    Raises:
        RecipeError: the template reads none of an argument, or writes today's date and none is
            pinned, or the other way round.
    """

    def __init__(
        self,
        hf: Any,
        text: str | None,
        arguments: Mapping[str, Any],
        date: datetime.date | None,
    ) -> None:
        if text is None:
            text = _own(hf, arguments)
        text = text.removeprefix("\ufeff")  # a byte order mark
        self._hf, self._arguments = hf, dict(arguments)
        words = set(re.findall(r"[A-Za-z_]\w*", text))
        for name in arguments:
            if name not in words:
                raise RecipeError(
                    f"model.template_arguments: the chat template reads no {name!r}"
                    f"{did_you_mean(name, words)}"
                )
        dated = _NOW in words and self._reads_the_clock(text)
        if dated and date is None:
            raise RecipeError(
                "model: its chat template writes today's date, so that tomorrow's prompts would "
                f"not be today's; pin one: template_date: {datetime.date.today()}"
            )
        if date is not None and not dated:
            raise RecipeError("model.template_date: the chat template writes no date; leave it out")
        self._text = text if date is None else _on(date) + text
        self._check()

    def _reads_the_clock(self, text: str) -> bool:
        for conversation in _CONVERSATIONS:
            try:
                self._filled(_STOPPED + text, conversation, True)
            except DataError as error:
                if _CLOCK in str(error):
                    return True
        return False

    def _check(self) -> None:
        """Refuse a template that never says what it is asked, or that no date can be given."""
        found = []
        for conversation in _CONVERSATIONS:
            try:
                found.append(self.render(conversation))
            except DataError as error:
                # Of a conversation that it refuses, the rows will tell.
                if _CODE in str(error):
                    raise RecipeError(f"model.template_date: {error}") from error
        if found and _ASKED not in found[0]:
            raise RecipeError(
                "model: its chat template writes nothing of what the user says, so that all "
                "prompts would be alike; give a chat_template that writes message.content"
            )

    def render(self, messages: Sequence[Message], *, generation: bool = True) -> str:
        """The conversation as text, up to where the answer starts if ``generation``.

        Raises:
            DataError: the template refuses the conversation.
        """
        return self._filled(self._text, messages, generation)

    def _filled(self, text: str, messages: Sequence[Message], generation: bool) -> str:
        try:
            return str(
                self._hf.apply_chat_template(
                    [dict(message) for message in messages],
                    chat_template=text,
                    tokenize=False,
                    add_generation_prompt=generation,
                    **self._arguments,
                )
            )
        except Exception as error:  # a template is a program: it can raise anything
            roles = ", ".join(str(message["role"]) for message in messages)
            kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
            raise DataError(
                f"the chat template refuses a conversation of {roles}: {kind}{error}"
            ) from error

    def _rendered(self, messages: Sequence[Message], *, generation: bool) -> str | None:
        """None where the template refuses such a conversation."""
        try:
            return self.render(messages, generation=generation)
        except DataError:
            return None

    @cached_property
    def _prompt(self) -> str:
        return self._rendered((_user(_ASKED),), generation=True) or ""

    @cached_property
    def _answered(self) -> str:
        return self._rendered((_user(_ASKED), _assistant(_ANSWERED)), generation=False) or ""

    @cached_property
    def lead(self) -> str:
        """What stands between the last content and an answer."""
        return self._prompt.rpartition(_ASKED)[2] if _ASKED in self._prompt else ""

    @property
    def gap(self) -> str:
        """The space that the template itself writes between prompt and answer."""
        begin = self._answered.partition(_ANSWERED)[0]
        gap = begin.removeprefix(self._prompt)
        return gap if gap != begin and gap.isspace() else ""

    def ending(self, tokens: Iterable[str]) -> tuple[str, str] | None:
        """The one of ``tokens`` that ends an answer, and the space before it; None: none does."""
        after = self._answered.partition(_ANSWERED)[2]
        body = after.lstrip()
        found = max((t for t in tokens if body.startswith(t)), key=len, default=None)
        return None if not found else (found, after[: len(after) - len(body)])

    @property
    def turns(self) -> str:
        """What it writes around the contents of a plain conversation."""
        found = (self._rendered(some, generation=False) for some in _CONVERSATIONS[1:])
        return "".join(text or "" for text in found)

    @property
    def unclosed(self) -> str | None:
        """A tag such as <think> that the prompt opens for the answer, and past answers lack."""
        header = self._answered.partition(_ANSWERED)[0].rpartition(_ASKED)[2]
        for match in _OPENED.finditer(self.lead):
            closing = f"</{match[1]}>" if match[1] else f"[/{match[2]}]"
            if closing not in self.lead[match.end() :] and match[0] not in header:
                return match[0]
        return None


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


_TURNS = (_user(_ASKED), _assistant(_ANSWERED), _user(_ASKED))
_CONVERSATIONS = (_TURNS[:1], ({"role": "system", "content": _SYSTEM}, *_TURNS), _TURNS)

_CLOCK = "the clock was read"
_CODE = "no such code of a date"


def _own(hf: Any, arguments: Mapping[str, Any]) -> str:
    try:
        return str(hf.get_chat_template(tools=arguments.get("tools")))
    except ValueError as error:
        raise RecipeError(
            "model: its tokenizer has several chat templates and none that is the default; write "
            "one into a file and name it as chat_template"
        ) from error


_STOPPED = f"{{%- macro {_NOW}(format) -%}}{{{{ raise_exception('{_CLOCK}') }}}}{{%- endmacro %}}\n"


def _on(day: datetime.date) -> str:
    """A macro in the place of the clock.

    Functions cannot be passed to a template, and the macro leaves the template's own first line
    where it was: at the beginning of a line.
    """
    moment = datetime.datetime.combine(day, datetime.time())
    codes = {f"%{letter}": moment.strftime(f"%{letter}") for letter in "aAbBcdGHIjmMpSuUVwWxXyY"}
    codes |= {f"%-{letter}": codes[f"%{letter}"].lstrip("0") or "0" for letter in "dHIjmMSUW"}
    codes |= {"%e": f"{moment.day:2d}", "%F": codes["%Y"] + moment.strftime("-%m-%d")}
    codes |= {"%D": moment.strftime("%m/%d/%y"), "%T": "00:00:00", "%R": "00:00", "%h": codes["%b"]}
    codes |= {"%f": "000000", "%z": "", "%Z": "", "%n": "\n", "%t": "\t"}
    codes |= {"%k": " 0", "%l": "12", "%C": codes["%Y"][:2], "%r": moment.strftime("%I:%M:%S %p")}
    codes |= {"%P": codes["%p"].lower()}
    pairs = ", ".join(f"({json.dumps(code)}, {json.dumps(value)})" for code, value in codes.items())
    return (
        f"{{%- macro {_NOW}(format) -%}}{{%- for part in format.split('%%') -%}}"
        "{%- set made = namespace(text=part) -%}"
        f"{{%- for code, value in [{pairs}] -%}}"
        "{%- set made.text = made.text | replace(code, value) -%}{%- endfor -%}"
        f"{{%- if '%' in made.text -%}}{{{{ raise_exception('{_CODE}: ' + made.text) }}}}"
        "{%- endif -%}{{- '%' if not loop.first else '' -}}{{- made.text -}}{%- endfor -%}"
        "{%- endmacro %}\n"
    )

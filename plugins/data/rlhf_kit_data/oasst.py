"""Open-Assistant conversation trees (arXiv:2304.07327) as K-way comparisons. Torch-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from rlhf_kit.errors import DataError
from rlhf_kit_data.options import OasstOptions
from rlhf_kit_data.records import Records
from rlhf_kit_data.rows import Rank, check

_FORM = (
    'a line is a tree, {"prompt": message with "replies"}, or a message, '
    '{"message_id": ..., "parent_id": ..., "text": ..., "role": ..., "rank": ...}'
)


class Message(BaseModel):
    """A message of a tree; what else the files say of it is not read."""

    model_config = ConfigDict(strict=True)
    message_id: str | None = None
    parent_id: str | None = None
    text: str
    role: Literal["prompter", "assistant"]
    lang: str | None = None
    rank: Rank | None = None  # among its siblings, 0 = best
    deleted: bool | None = None
    review_result: bool | None = None  # False: the reviewers found it to be spam
    replies: list[Message] = []

    @model_validator(mode="after")
    def _taking_turns(self) -> Message:
        for reply in self.replies:
            if reply.role == self.role:
                raise ValueError(f"a reply of the same role as its message, {self.role}")
        return self

    @property
    def turn(self) -> dict[str, str]:
        role = "user" if self.role == "prompter" else "assistant"
        return {"role": role, "content": self.text.strip()}


class Tree(BaseModel):
    """The form of one tree a line."""

    prompt: Message


COLUMNS = ("prompt", *(name for name in Message.model_fields if name != "replies"))


def rows(
    records: Records, options: OasstOptions, dropped: Counter[str]
) -> Iterator[dict[str, Any]]:
    """One comparison per group of sibling replies of which people have ranked at least two.

    Ranks are the people's own; a reply without one has rank None and takes part in no pair.

    Raises:
        DataError: a record of another form, a message twice, one that does not take turns,
            or one that answers itself.
    """

    def kept(message: Message) -> bool:
        reason = _unwanted(message, options.languages)
        if reason:
            dropped[reason] += 1
        return reason is None

    for root in _roots(records, dropped):
        # (message, what was said before it), the next one last
        stack: list[tuple[Message, list[dict[str, str]]]] = [(root, [])] if kept(root) else []
        while stack:
            message, before = stack.pop()
            said = [*before, message.turn]
            replies = [reply for reply in message.replies if kept(reply)]
            stack += [(reply, said) for reply in reversed(replies)]
            if message.role == "assistant" or len(replies) < 2:
                continue
            if sum(reply.rank is not None for reply in replies) < 2:
                dropped["groups of replies of which fewer than two are ranked"] += 1
                continue
            yield {
                **({"id": message.message_id} if message.message_id else {}),
                "messages": said,
                "completions": [reply.text.strip() for reply in replies],
                "ranks": [reply.rank for reply in replies],
            }


def _unwanted(message: Message, languages: tuple[str, ...] | None) -> str | None:
    """Why a message is left out, together with all that hangs on it; None if it stays."""
    if message.deleted or message.review_result is False:
        return "messages that were deleted or found to be spam"
    if not message.text.strip():
        return "messages without text"
    if languages is not None and message.lang is not None and message.lang not in languages:
        return "messages in another language"
    return None


def _roots(records: Records, dropped: Counter[str]) -> Iterator[Message]:
    """The trees, whether a record is a whole tree or one message of it."""
    messages: dict[str, tuple[str, Message]] = {}
    for where, record in records:
        if isinstance(record, dict) and "message_id" in record and "prompt" not in record:
            message = check(record, Message, where, _FORM)
            if message.message_id is None or message.message_id in messages:
                raise DataError(f"{where}: message_id: {message.message_id} must be there once")
            messages[message.message_id] = (where, message)
        else:
            yield _root(check(record, Tree, where, _FORM).prompt, where)
    for where, message in messages.values():
        if message.parent_id is None:
            continue
        if message.parent_id not in messages:
            dropped["messages whose parent is not in the file"] += 1
            continue
        parent = messages[message.parent_id][1]
        if parent.role == message.role:
            raise DataError(f"{where}: role: the same as its parent's, {message.role}")
        parent.replies.append(message)
    _refuse_circles(messages)
    for where, message in messages.values():
        if message.parent_id is None:
            yield _root(message, where)


def _refuse_circles(messages: dict[str, tuple[str, Message]]) -> None:
    """Refuse messages from which no way up ends: no root would find them."""
    ends = set[str]()
    for name in messages:
        above = dict[str, None]()
        parent: str | None = name
        while parent in messages and parent not in ends:
            if parent in above:
                where = messages[parent][0]
                raise DataError(f"{where}: parent_id: {parent} is a reply to its own replies")
            above[parent] = None
            parent = messages[parent][1].parent_id
        ends.update(above)


def _root(message: Message, where: str) -> Message:
    if message.role != "prompter":
        raise DataError(f"{where}: role: a conversation must begin with a prompter's message")
    return message

"""Text to tokens, with the chat template of the model."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from rlhf_kit.types import Row


@runtime_checkable
class Tokenizer(Protocol):
    eos_id: int  # written behind a response that has ended
    end_ids: tuple[int, ...]  # each of them ends a response that is sampled; eos_id is one
    begin_ids: tuple[int, ...]  # begin every sequence, where the model was trained so; else none
    separator_id: int  # stands between documents of running text
    pad_id: int  # never scored; may equal eos_id
    max_length: int  # the context of the model, in tokens

    def prompt(self, row: Row) -> list[int]:
        """Tokens of ``row["messages"]`` or ``row["prompt"]``, up to where the answer starts.

        They begin with ``begin_ids``. Here as below, nothing that the text says makes a control
        token. ``row["token_ids"]``, where a row has them, are its tokens as they are.

        Raises:
            DataError: the template refuses the conversation, content cannot be kept apart, or an id
                is out of range.
        """

    def response(self, text: str, *, finished: bool = True) -> list[int]:
        """Tokens of an answer, as behind a prompt; with ``eos_id`` when ``finished``.

        Raises:
            DataError: the text holds one of ``end_ids``, where those are ordinary text.
        """

    def text(self, text: str) -> list[int]:
        """Tokens of running text, without any template, and without ``begin_ids``."""

    def decode(self, tokens: list[int]) -> str:
        """Text without special tokens."""

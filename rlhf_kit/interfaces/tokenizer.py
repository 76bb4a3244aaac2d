"""Text to tokens, with the chat template of the model."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from rlhf_kit.types.samples import Row


@runtime_checkable
class Tokenizer(Protocol):
    eos_id: int  # ends a response
    pad_id: int  # never scored; may equal eos_id
    max_length: int  # the context of the model, in tokens

    def prompt(self, row: Row) -> list[int]:
        """Tokens of ``row["messages"]`` or ``row["prompt"]``, up to where the answer starts."""

    def response(self, text: str, *, finished: bool = True) -> list[int]:
        """Tokens of an answer, with the end-of-sequence token when ``finished``."""

    def text(self, text: str) -> list[int]:
        """Tokens of running text, without any template."""

    def decode(self, tokens: list[int]) -> str:
        """Text without special tokens."""

"""Text to tokens through a transformers tokenizer and its chat template."""

from __future__ import annotations

import hashlib
from typing import Any

from rlhf_kit.errors import RecipeError
from rlhf_kit.interfaces import Tokenizer
from rlhf_kit.types.samples import Row
from rlhf_kit_hf.options import TextOptions

_SENTENCE = "Two tokenizers that read this alike, 100 % of it, are taken for one.\n"


def reading(tokenizer: Tokenizer) -> str:
    """A short hash of how a tokenizer reads a sentence and ends a response."""
    ids = [tokenizer.eos_id, *tokenizer.text(_SENTENCE)]
    return hashlib.sha256(str(ids).encode()).hexdigest()[:12]


class ChatTokenizer:
    """Implements rlhf_kit.interfaces.Tokenizer."""

    def __init__(self, tokenizer: Any, options: TextOptions, context: int | None) -> None:
        if tokenizer.eos_token_id is None:
            raise RecipeError(
                "model: its tokenizer has no end-of-sequence token, so responses could never end"
            )
        if options.chat_template is not None:
            tokenizer.chat_template = options.chat_template.read_text(encoding="utf-8")
        self.hf = tokenizer
        self.eos_id: int = tokenizer.eos_token_id
        self.pad_id: int = (
            tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        )
        self.max_length = options.max_length or context or 2**20
        self._system = options.system

    def prompt(self, row: Row) -> list[int]:
        messages = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
        if self._system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self._system}, *messages]
        if self.hf.chat_template is None:
            # A base model without a template continues plain text.
            return self.text("\n\n".join(m["content"] for m in messages) + "\n\n")
        text = self.hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self.text(text)  # the template has written every special token itself

    def response(self, text: str, *, finished: bool = True) -> list[int]:
        return self.text(text) + ([self.eos_id] if finished else [])

    def text(self, text: str) -> list[int]:
        return list(self.hf(text, add_special_tokens=False)["input_ids"])

    def decode(self, tokens: list[int]) -> str:
        return str(self.hf.decode(tokens, skip_special_tokens=True)).strip()

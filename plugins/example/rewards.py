"""Rewards that need no package: plain functions beside the recipe (`use: python`)."""

from __future__ import annotations

import re


def on_topic(prompts: list[str], responses: list[str]) -> list[float]:
    """Share of a prompt's longer words that its response takes up."""
    return [_share(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]


def _share(prompt: str, response: str) -> float:
    asked = {word for word in _words(prompt) if len(word) > 3}
    return len(asked & _words(response)) / max(1, len(asked))


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))

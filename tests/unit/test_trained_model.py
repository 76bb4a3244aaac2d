"""The converted model of the fixtures computes what its own package computes."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from toys import plain_model
from transformers import AutoTokenizer

TEXTS = (
    "Once upon a time there was a little dog who lived by the sea.",
    "  Two spaces,\nand a line break!\n\nCafé Δ 123",
)


@pytest.mark.parametrize("text", TEXTS)
def test_tokenizer_agrees(trained_model: Path, text: str) -> None:
    import glassllm

    _, original = glassllm.load_pretrained("en")
    tokenizer = AutoTokenizer.from_pretrained(trained_model)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokens == original.encode(text)
    known = [t for t in tokens if t != tokenizer.unk_token_id]
    assert tokenizer.decode(known) == original.decode(known)


def test_logits_agree(trained_model: Path) -> None:
    import glassllm

    source, original = glassllm.load_pretrained("en")
    tokens = (original.encode(TEXTS[0]) * 8)[:128]  # the whole context
    expected = source.forward(numpy.array(tokens)).data[0]
    with torch.no_grad():
        found = plain_model(trained_model)(torch.tensor([tokens])).logits[0].numpy()
    assert numpy.abs(expected).max() > 5  # it is a trained model
    assert numpy.abs(found - expected).max() < 1e-3

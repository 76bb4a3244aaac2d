"""Packed rows: a completion scores as it would alone behind its prompt, gradients included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rlhf_kit_hf import reward_model as reward_module
from rlhf_kit_hf.packing import can_pack, should_pack
from torch import Tensor
from toys import CONTEXT, PROMPTS, VOCABULARY

from rlhf_kit.ops.sequence import by_length
from rlhf_kit.types import PackedTexts

COMPLETIONS = (
    ("Hello!", "Go away.", "Good morning to you, and a fine day.", "Hi."),
    ("Grey.", "Rough and cold."),
    ("You are kind.", "No.", "Why should I?"),
    ("Because.", "I do not know why, and nobody does."),
)
PAIRS = [(m, kind) for m in ("full", "lora") for kind in ("llama", "qwen3", "neox", "gpt2")]
PAIRS += [("hydra", kind) for kind in ("llama", "qwen3", "neox")]


def packed(tokenizer: Any) -> PackedTexts:
    """Four prompts with two to four completions each."""
    prompts = [tokenizer.prompt({"prompt": text}) for text in PROMPTS]
    completions = [[tokenizer.response(text) for text in own] for own in COMPLETIONS]
    return PackedTexts.of(prompts, completions, tokenizer.pad_id)


def dirtied(texts: PackedTexts, width: int) -> PackedTexts:
    """With ``width`` more columns of padding, and garbage in all of it."""

    def wide(x: Tensor) -> Tensor:
        return torch.cat([x, torch.zeros_like(x[:, :1]).expand(-1, width)], 1)

    mask = wide(texts.mask)
    garbage = torch.randint(1, 4, mask.shape)
    return replace(
        texts,
        mask=mask,
        tokens=torch.where(mask, wide(texts.tokens), torch.randint(VOCABULARY, mask.shape)),
        segment=torch.where(mask, wide(texts.segment), garbage),
        positions=torch.where(mask, wide(texts.positions), 7 * garbage),
    )


def gradients(model: Any, scores: Tensor) -> list[Tensor | None]:
    """Of a sum that weighs every score differently."""
    scores = scores[scores != 0]  # what does not exist scores 0
    weights = torch.linspace(-1.0, 2.0, len(scores))
    return list(
        torch.autograd.grad((scores * weights).sum(), list(model.parameters()), allow_unused=True)
    )


def packs(monkeypatch: pytest.MonkeyPatch, wanted: bool) -> None:
    monkeypatch.setattr(reward_module, "should_pack", lambda *_: wanted)


def moved(model: Any) -> Any:
    """Off the start, where LoRA's second factor is zero and gets all of the gradient."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize(("memory", "kind"), PAIRS)
def test_packed_is_separate(
    context_of: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    memory: str,
    kind: str,
    pooling: str,
) -> None:
    context = context_of(memory, kind)
    model = moved(context.memory().scorer(None, pooling=pooling))
    texts = packed(context.tokenizer)
    rows, exists = texts.unpacked()
    alone = model.score(rows)  # one row per completion, and nothing that knows of packing
    assert alone.std() > 0.05
    slopes = gradients(model, alone)
    assert model._can_pack
    found: dict[str, Tensor] = {}
    for name, pack in (("packed", True), ("separate", False)):
        packs(monkeypatch, pack)
        encoded = model.encode(texts)
        assert (encoded.trunk is not None) == (memory == "hydra")
        given = {"plain": texts, "encoded": encoded, "dirty": dirtied(texts, 5)}
        for key, batch in given.items():
            scores = found[f"{name} {key}"] = model.compare(batch)
            assert scores.shape == (4, 4) and bool((scores[~exists] == 0).all())
            torch.testing.assert_close(scores[exists], alone, rtol=1e-4, atol=2e-5)
            for got, wanted in zip(gradients(model, scores), slopes, strict=True):
                assert (got is None) == (wanted is None)
                if got is not None and wanted is not None:
                    bound = 1e-4 * max(1.0, float(wanted.abs().max()))
                    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=bound)
        features = model.features(texts)
        torch.testing.assert_close(
            model._head(features).squeeze(-1)[exists], alone, rtol=1e-4, atol=2e-5
        )
        assert bool((features[~exists] == 0).all())


@pytest.mark.parametrize("memory", ["full", "hydra"])
def test_batches_of_any_width_give_the_same(context_of: Callable[..., Any], memory: str) -> None:
    context = context_of(memory)
    model = context.memory().scorer(None)
    texts = packed(context.tokenizer)
    with torch.no_grad():
        whole = model.compare(texts)
        for size in (1, 3):
            for prompts in by_length(texts.mask.sum(1), size):
                part = model.compare(model.encode(texts.select(prompts)))
                torch.testing.assert_close(part, whole[prompts], rtol=0, atol=2e-5)


def test_a_row_may_be_longer_than_the_context(
    context_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions start again with every completion, so learned ones suffice."""
    context = context_of("full", "gpt2")
    model = context.memory().scorer(None)
    prompt = list(range(3, 43))
    answers = [[(7 * k + i) % VOCABULARY for i in range(40)] for k in range(8)]
    texts = PackedTexts.of([prompt], [answers], pad=0)
    assert texts.tokens.shape[1] == 360 > CONTEXT
    packs(monkeypatch, True)
    with torch.no_grad():
        alone = model.score(texts.unpacked()[0])
        torch.testing.assert_close(model.compare(texts)[0], alone, rtol=0, atol=2e-5)


class Deaf:
    """A role whose attention ignores, or refuses, a mask of its own."""

    def __init__(self, role: Any, refuses: bool) -> None:
        self._role, self._refuses = role, refuses
        self.hidden_size, self.config = role.hidden_size, role.config
        self.parameters = role.parameters

    def encode(self, tokens: Tensor, mask: Tensor, positions: Tensor | None = None) -> Any:
        assert mask.dim() == 2, "packed all the same"
        return self._role.encode(tokens, mask)

    def hidden(
        self, tokens: Tensor, mask: Tensor, trunk: Any = None, positions: Any = None
    ) -> Tensor:
        if mask.dim() == 3:
            if self._refuses:
                raise RuntimeError("only two dimensions, please")
            mask = torch.ones_like(tokens, dtype=torch.bool)
        return self._role.hidden(tokens, mask, trunk)


@pytest.mark.parametrize("refuses", [True, False])
@pytest.mark.parametrize("memory", ["full", "hydra"])
def test_an_attention_that_cannot_falls_back(
    context_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, memory: str, refuses: bool
) -> None:
    context = context_of(memory)
    model = context.memory().scorer(None)
    texts = packed(context.tokenizer)
    packs(monkeypatch, True)
    with torch.no_grad():
        expected = model.compare(texts)
        assert can_pack(model._role, torch.device("cpu"))
        deaf = Deaf(model._role, refuses)
        assert not can_pack(deaf, torch.device("cpu"))
        model._role = deaf
        del model._can_pack
        torch.testing.assert_close(model.compare(model.encode(texts)), expected, rtol=0, atol=2e-5)
    assert model._can_pack is False


def test_packing_where_it_pays() -> None:
    def texts(prompt: int, response: int, count: int) -> PackedTexts:
        return PackedTexts.of([[1] * prompt], [[[1] * response] * count], pad=0)

    small = SimpleNamespace(hidden_size=576, sliding_window=None)
    assert should_pack(texts(30, 28, 6), small)
    assert should_pack(texts(1000, 1000, 9), SimpleNamespace(hidden_size=4096))
    assert not should_pack(texts(20, 500, 9), small)  # attention over 4,520 tokens
    for window, wanted in ((49, False), (50, True)):  # it would be counted along the packed row
        short_sighted = SimpleNamespace(hidden_size=576, sliding_window=window)
        assert should_pack(texts(30, 10, 2), short_sighted) is wanted

"""Reward models: a score depends on its own text and on nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toys import ANSWERS, VOCABULARY, prompts, respond, texts

from rlhf_kit.types import TextBatch

MEMORIES = ("full", "lora", "hydra")


def padded(batch: TextBatch, i: int, left: int, right: int) -> TextBatch:
    """Row ``i`` alone, with random tokens as padding on both sides."""
    mask = batch.mask[i]

    def around(row: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return torch.cat([value[:left], row[mask], value[left:]])[None]

    garbage = torch.randint(VOCABULARY, (left + right,))
    nothing = torch.zeros(left + right, dtype=torch.bool)
    return TextBatch(
        around(batch.tokens[i], garbage),
        around(mask, nothing),
        around(batch.target[i], nothing),
    )


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize(
    ("memory", "kind"), [(m, "llama") for m in MEMORIES] + [("full", "gpt2"), ("lora", "gpt2")]
)
def test_score_is_independent_of_padding_and_of_the_batch(
    context_of: Callable[..., Any], memory: str, kind: str, pooling: str
) -> None:
    context = context_of(memory, kind)
    model = context.memory().scorer(None, pooling=pooling)
    batch = texts(context.tokenizer, *ANSWERS)
    with torch.no_grad():
        together = model.score(batch)
        assert together.std() > 0.05  # the scores tell the answers apart
        for i in range(len(batch)):
            for left, right in ((0, 0), (0, 7), (5, 0), (3, 2)):
                alone = model.score(padded(batch, i, left, right))
                torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=2e-5)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("memory", MEMORIES)
def test_samples_score_as_their_texts(
    context_of: Callable[..., Any], memory: str, pooling: str
) -> None:
    """What PPO scores (left-padded, with a captured trunk) is what was trained (right-padded)."""
    context = context_of(memory)
    strategy = context.memory()
    model = strategy.scorer(None, pooling=pooling)
    policy = strategy.policy(None, trainable=False)
    samples = respond(policy, prompts(context.tokenizer), 10, key=2)
    assert (samples.trunk is not None) == (memory == "hydra")
    found = model(samples)
    torch.testing.assert_close(model(replace(samples, trunk=None)), found, rtol=0, atol=2e-5)
    for i in range(len(samples)):
        row = samples.prompts.tokens[i][samples.prompts.mask[i]]
        answer = samples.response_tokens[i][samples.response_mask[i]]
        tokens = torch.cat([row, answer])[None]
        target = torch.arange(tokens.shape[1])[None] >= len(row)
        with torch.no_grad():
            text = model.score(TextBatch(tokens, torch.ones_like(target), target))
        torch.testing.assert_close(text, found[i : i + 1], rtol=0, atol=2e-5)


@pytest.mark.parametrize("memory", MEMORIES)
def test_save_and_load(context_of: Callable[..., Any], tmp_path: Path, memory: str) -> None:
    context = context_of(memory)
    model = context.memory().scorer(None, pooling="mean")
    batch = texts(context.tokenizer, *ANSWERS)
    fresh = model.score(batch)
    fresh.sum().backward()
    for p in model.parameters():
        if p.grad is not None:  # the language-model head takes no part
            p.data += 0.05 * p.grad
    with torch.no_grad():
        unshifted = model.score(batch)
    model.shift(-0.75)
    with torch.no_grad():
        expected = model.score(batch)
    torch.testing.assert_close(expected, unshifted - 0.75)
    assert not torch.allclose(expected, fresh - 0.75, atol=0.01)  # more than the bias has moved
    model.save(tmp_path)
    loaded = context.memory().scorer(tmp_path, trainable=False)
    assert list(loaded.parameters()) == [] or not any(p.requires_grad for p in loaded.parameters())
    assert loaded.pooling == "mean"
    with torch.no_grad():
        assert torch.equal(loaded.score(batch), expected)
    # The shift is in the head itself, for whoever reads the folder without this package.
    assert json.loads((tmp_path / "reward_head.json").read_text()) == {"pooling": "mean"}
    assert torch.equal(load_file(tmp_path / "reward_head.safetensors")["bias"], model._head.bias)


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_policy_folder_gives_its_body_and_a_fresh_head(
    context_of: Callable[..., Any], tmp_path: Path, memory: str
) -> None:
    context = context_of(memory)
    policy = context.memory().policy(None)
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.1
    policy.save(tmp_path)
    batch = texts(context.tokenizer, *ANSWERS)
    scores = []
    for start in (tmp_path, tmp_path, None):
        torch.manual_seed(11)
        model = context.memory().scorer(start)
        torch.manual_seed(12)
        torch.nn.init.normal_(model._head.weight)  # the same head on all bodies
        with torch.no_grad():
            scores.append(model.score(batch))
    assert torch.equal(scores[0], scores[1])
    assert (scores[0] - scores[2]).abs().max() > 0.1


def test_head_at_the_start(context_of: Callable[..., Any]) -> None:
    """Std 1/sqrt(H + 1), or what the recipe says."""
    context = context_of("full")
    memory = context.memory()
    weights = torch.cat([memory.scorer(None)._head.weight for _ in range(20)])
    assert weights.std().item() == pytest.approx(1 / math.sqrt(33), rel=0.1)
    zero = memory.scorer(None, init_std=0.0)
    assert (zero.score(texts(context.tokenizer, *ANSWERS)) == 0).all()


@pytest.mark.parametrize("memory", ["full", "lora", "hydra"])
def test_two_reward_models_side_by_side(
    context_of: Callable[..., Any], tmp_path: Path, memory: str
) -> None:
    """As in a weighted sum: the second one must not take the place of the first."""
    context = context_of(memory)
    batch = texts(context.tokenizer, *ANSWERS)
    expected = []
    for name in ("first", "second"):
        model = context.memory().scorer(None)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
            expected.append(model.score(batch))
        model.save(tmp_path / name)
    shared = context.memory()
    models = [shared.scorer(tmp_path / n, trainable=False) for n in ("first", "second")]
    with torch.no_grad():
        found = [model.score(batch) for model in models]
    for got, wanted in zip(found, expected, strict=True):
        assert torch.allclose(got, wanted, atol=1e-5)
    assert not torch.allclose(expected[0], expected[1], atol=1e-2)

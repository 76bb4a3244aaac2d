"""Full: separate models, each loadable by plain transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import ANSWERS, hand_logprobs, plain_model, texts, train, trained_folder


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "neox"])
def test_plain_transformers_loads_the_folder(
    context_of: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    """With a tied head (qwen3, gpt2) and with a free one."""
    context = context_of("full", kind)
    folder = trained_folder(context, tmp_path)
    plain = plain_model(folder)
    batch = texts(context.tokenizer, *ANSWERS)
    with torch.no_grad():
        found = context.memory().policy(folder).next_token_logprobs(batch)
        base = context.memory().policy(None).next_token_logprobs(batch)
    assert (found - base).abs().max() > 0.1
    for i in range(len(batch)):
        begin = int(batch.target[i].long().argmax())
        row = batch.tokens[i][batch.mask[i]].tolist()
        expected = hand_logprobs(plain, row[:begin], row[begin:], 1.0)
        torch.testing.assert_close(
            found[i][batch.predicted[i]].double(), expected, rtol=0, atol=1e-4
        )


def test_every_role_has_its_own_weights(context_of: Callable[..., Any]) -> None:
    context = context_of("full")
    memory = context.memory()
    policy, reward = memory.policy(None), memory.scorer(None)
    batch = texts(context.tokenizer, *ANSWERS)
    with torch.no_grad():
        before = reward.score(batch)
    train(policy, batch)
    with torch.no_grad():
        assert torch.equal(reward.score(batch), before)
        fresh = memory.policy(None).next_token_logprobs(batch)
        assert not torch.equal(policy.next_token_logprobs(batch), fresh)


def test_dropout_is_off(context_of: Callable[..., Any]) -> None:
    """GPT-2 has dropout 0.1: a policy that drops out has no logprobs, and no ratio of 1."""
    context = context_of("full", "gpt2")
    policy = context.memory().policy(None)
    batch = texts(context.tokenizer, *ANSWERS)
    first = policy.next_token_logprobs(batch)
    assert torch.equal(first, policy.next_token_logprobs(batch))

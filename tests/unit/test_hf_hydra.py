"""Hydra: trunk and branch are the model, what is captured is what would be computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import plain_model, prompts, respond, texts

from rlhf_kit.errors import RecipeError
from rlhf_kit.types import Samples

FAMILIES = ("llama", "qwen3", "neox")


def built(context: Any) -> tuple[Any, Any, Samples]:
    memory = context.memory()
    policy = memory.policy(None)
    return memory, policy, respond(policy, prompts(context.tokenizer), 10, key=5)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("layers", [1, 3])
def test_captured_trunk_is_the_recomputed_one(
    context_of: Callable[..., Any], kind: str, layers: int
) -> None:
    _, policy, samples = built(context_of("hydra", kind, trainable_layers=layers))
    again = policy.role.encode(samples.tokens, samples.token_mask)
    mask, trunk = samples.token_mask, samples.padded_trunk()
    assert trunk is not None and trunk.states.shape == (*samples.tokens.shape, 32)
    assert trunk.origin == again.origin == policy.role.origin
    torch.testing.assert_close(trunk.states[mask], again.states[mask], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        captured = policy.evaluate(samples).logprobs
        computed = policy.evaluate(replace(samples, trunk=None)).logprobs
    torch.testing.assert_close(captured, computed, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", FAMILIES)
def test_trunk_is_the_hidden_state_at_the_split(
    context_of: Callable[..., Any], toy_models: Callable[[str], Path], kind: str
) -> None:
    _, _, samples = built(context_of("hydra", kind, trainable_layers=1))
    model = plain_model(toy_models(kind))
    for i, mask in enumerate(samples.token_mask):
        row = samples.tokens[i][mask]
        with torch.no_grad():
            states = model(row[None], output_hidden_states=True).hidden_states
        assert samples.trunk is not None
        torch.testing.assert_close(samples.trunk.rows[i], states[3][0], rtol=1e-4, atol=1e-4)


def test_a_captured_trunk_spares_the_lower_layers(context_of: Callable[..., Any]) -> None:
    memory, policy, samples = built(context_of("hydra", trainable_layers=1))
    calls = []
    for layer in memory.model.base_model.layers[:3]:
        layer.register_forward_hook(lambda *_: calls.append(1))
    policy.evaluate(samples).logprobs.sum().backward()
    assert not calls
    policy.evaluate(replace(samples, trunk=None))
    assert len(calls) == 3


def test_only_the_branch_is_trained(context_of: Callable[..., Any]) -> None:
    context = context_of("hydra", trainable_layers=1)
    memory, policy, _ = built(context)
    before = {n: p.clone() for n, p in memory.model.named_parameters()}
    layer = memory.model.base_model.layers[3]
    expected = sum(p.numel() for p in layer.parameters()) + 32  # and the final norm
    parameters = list(policy.parameters())
    assert sum(p.numel() for p in parameters) == expected
    (-policy.next_token_logprobs(texts(context.tokenizer, "Yes.", "No.")).sum()).backward()
    for p in parameters:
        assert p.grad is not None
        p.data -= 0.1 * p.grad
    for name, p in memory.model.named_parameters():
        assert torch.equal(p, before[name]), name
        assert p.grad is None, name


def test_roles_do_not_share_a_branch(context_of: Callable[..., Any]) -> None:
    context = context_of("hydra")
    memory, policy, _ = built(context)
    reward = memory.scorer(None)
    batch = texts(context.tokenizer, "Yes.", "No.")
    with torch.no_grad():
        before = reward.score(batch)
        for p in policy.parameters():
            p += 1.0
        assert torch.equal(reward.score(batch), before)


def test_a_model_that_does_not_split_is_refused(context_of: Callable[..., Any]) -> None:
    """GPT-2 adds its positions to whatever it is fed, so a branch would add them again."""
    with pytest.raises(RecipeError, match=r"hydra cannot split GPT2LMHeadModel: .* lora or full"):
        context_of("hydra", "gpt2").memory()


@pytest.mark.parametrize("layers", [4, 9])
def test_a_trunk_needs_a_layer(context_of: Callable[..., Any], layers: int) -> None:
    with pytest.raises(RecipeError, match=f"{layers}, but the model has 4 layers"):
        context_of("hydra", trainable_layers=layers).memory()

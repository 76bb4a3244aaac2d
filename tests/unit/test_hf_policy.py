"""Policies over all memory strategies: alignment, padding, temperature, reference, saving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import (
    ANSWERS,
    PROMPTS,
    VOCABULARY,
    hand_logprobs,
    plain_model,
    prompts,
    respond,
    texts,
    train,
    trained_folder,
)

from rlhf_kit.errors import RecipeError
from rlhf_kit.types import Samples

MEMORIES = ("full", "lora", "hydra")
PAIRS = [(m, k) for m in ("full", "lora") for k in ("llama", "gpt2")] + [("hydra", "llama")]


def sampled(context: Any, policy: Any, temperature: float = 1.0, length: int = 12) -> Samples:
    return respond(policy, prompts(context.tokenizer), length, temperature, key=3)


@torch.no_grad()
def logprobs(policy: Any, samples: Samples) -> Tensor:
    return policy.evaluate(samples).logprobs


def check_against_hand(samples: Samples, found: Tensor, model: Any) -> None:
    for i, (row, mask) in enumerate(zip(samples.prompts.tokens, samples.prompts.mask, strict=True)):
        valid = samples.response_mask[i]
        answer = samples.response_tokens[i][valid].tolist()
        expected = hand_logprobs(model, row[mask].tolist(), answer, samples.temperature)
        torch.testing.assert_close(found[i][valid].double(), expected, rtol=0, atol=1e-4)
        assert (found[i][~valid] == 0).all()


@pytest.mark.parametrize(("memory", "kind"), PAIRS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_equal_an_unpadded_hand_indexed_loop(
    context_of: Callable[..., Any],
    toy_models: Callable[[str], Path],
    memory: str,
    kind: str,
    temperature: float,
) -> None:
    """Left padding, the off-by-one, the temperature; GPT-2 has learned positions, RoPE hides."""
    context = context_of(memory, kind)
    policy = context.memory().policy(None)
    samples = sampled(context, policy, temperature)
    assert len(set(samples.prompts.mask.sum(1).tolist())) == len(PROMPTS)  # really padded
    check_against_hand(samples, logprobs(policy, samples), plain_model(toy_models(kind)))


@pytest.mark.parametrize(("memory", "kind"), PAIRS)
def test_next_token_logprobs_equal_a_hand_indexed_loop(
    context_of: Callable[..., Any], toy_models: Callable[[str], Path], memory: str, kind: str
) -> None:
    context = context_of(memory, kind)
    batch = texts(context.tokenizer, *ANSWERS)
    with torch.no_grad():
        found = context.memory().policy(None).next_token_logprobs(batch)
    model = plain_model(toy_models(kind))
    for i in range(len(batch)):
        begin = int(batch.target[i].long().argmax())
        row = batch.tokens[i][batch.mask[i]].tolist()
        expected = hand_logprobs(model, row[:begin], row[begin:], 1.0)
        assert row[-1] == context.tokenizer.eos_id  # the end is learned too
        torch.testing.assert_close(
            found[i][batch.predicted[i]].double(), expected, rtol=0, atol=1e-4
        )
        assert (found[i][~batch.predicted[i]] == 0).all()


@pytest.mark.parametrize("memory", MEMORIES)
def test_mask_ends_with_the_end_token(context_of: Callable[..., Any], memory: str) -> None:
    context = context_of(memory)
    eos, pad = context.tokenizer.eos_id, context.tokenizer.pad_id
    policy = context.memory().policy(None)
    many = prompts(context.tokenizer, PROMPTS * 8)
    samples = respond(policy, many, 12, key=1)
    assert 0 < samples.finished.sum() < len(samples)
    for tokens, mask, finished in zip(
        samples.response_tokens.tolist(),
        samples.response_mask.tolist(),
        samples.finished.tolist(),
        strict=True,
    ):
        length = tokens.index(eos) + 1 if eos in tokens else len(tokens)
        assert mask == [True] * length + [False] * (len(tokens) - length)
        assert finished == (eos in tokens)
        assert set(tokens[length:]) <= {pad}
    assert not any("<|" in text for text in samples.responses)


@pytest.mark.parametrize(("memory", "kind"), PAIRS)
def test_garbage_under_padding_changes_nothing(
    context_of: Callable[..., Any], memory: str, kind: str
) -> None:
    context = context_of(memory, kind)
    policy = context.memory().policy(None)
    samples = replace(sampled(context, policy), trunk=None)  # so that hydra computes it again
    # One more column that no row uses, on top of the padding there is.
    mask = samples.response_mask.clone()
    mask[0, 3:] = False
    samples = replace(samples, response_mask=mask)

    def dirty(tokens: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, tokens, torch.randint(VOCABULARY, tokens.shape))

    prompt = samples.prompts
    other = replace(
        samples,
        prompts=replace(prompt, tokens=dirty(prompt.tokens, prompt.mask)),
        response_tokens=dirty(samples.response_tokens, mask),
    )
    assert not torch.equal(other.tokens, samples.tokens)
    assert torch.equal(logprobs(policy, samples), logprobs(policy, other))


@pytest.mark.parametrize("memory", MEMORIES)
def test_policy_is_its_reference_at_step_0_and_leaves_it_behind(
    context_of: Callable[..., Any], tmp_path: Path, memory: str
) -> None:
    context = context_of(memory)
    sft = trained_folder(context, tmp_path)
    strategy = context.memory()
    policy, frozen = strategy.policy(sft), strategy.reference(sft)
    samples = sampled(context, policy)
    before, reference = logprobs(policy, samples), logprobs(frozen, samples)
    assert torch.equal(before, reference)  # KL is 0, not merely small
    base = logprobs(strategy.reference(None), samples)
    assert (base - reference).abs().max() > 0.1  # "adapter off = base, not SFT"

    train(policy, texts(context.tokenizer, *ANSWERS))
    assert torch.equal(logprobs(frozen, samples), reference)
    assert (logprobs(policy, samples) - before).abs().max() > 1e-4


@pytest.mark.parametrize("memory", MEMORIES)
def test_building_a_reference_draws_nothing(context_of: Callable[..., Any], memory: str) -> None:
    """What is initialised after it is the same with a reference and without."""
    strategy = context_of(memory).memory()
    kept = strategy.policy(None)
    before = torch.get_rng_state()
    strategy.reference(None)
    assert torch.equal(torch.get_rng_state(), before)
    assert kept.hidden_size == 32


@pytest.mark.parametrize("memory", MEMORIES)
def test_asking_the_reference_does_not_disturb_a_gradient(
    context_of: Callable[..., Any], tmp_path: Path, memory: str
) -> None:
    """Roles share a backbone: switching to another must not lose what is being trained."""
    context = context_of(memory)
    sft = trained_folder(context, tmp_path)
    strategy = context.memory()
    policy, reference = strategy.policy(sft), strategy.reference(sft)
    samples = sampled(context, policy)
    gradients = []
    for ask in (False, True):
        parameters = list(policy.parameters())
        for p in parameters:
            p.grad = None
        total = policy.evaluate(samples).logprobs.sum()
        if ask:
            logprobs(reference, samples)
        total.backward()
        gradients.append([p.grad for p in parameters])
    assert any(g.abs().max() > 0 for g in gradients[0])
    for plain, disturbed in zip(*gradients, strict=True):
        assert disturbed is not None
        torch.testing.assert_close(plain, disturbed)


@pytest.mark.parametrize("memory", MEMORIES)
def test_save_and_load(context_of: Callable[..., Any], tmp_path: Path, memory: str) -> None:
    context = context_of(memory)
    policy = context.memory().policy(None)
    samples = sampled(context, policy)
    fresh = logprobs(policy, samples)
    train(policy, texts(context.tokenizer, *ANSWERS))
    expected = logprobs(policy, samples)
    assert not torch.equal(fresh, expected)
    policy.save(tmp_path)
    loaded = context.memory().policy(tmp_path, trainable=False)
    assert torch.equal(logprobs(loaded, samples), expected)
    # What a checkpoint holds puts everything back.
    state = {name: value.clone() for name, value in policy.state_dict().items()}
    train(policy, texts(context.tokenizer, *ANSWERS))
    assert not torch.equal(logprobs(policy, samples), expected)
    policy.load_state_dict(state)
    assert torch.equal(logprobs(policy, samples), expected)


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_frozen_policy_offers_nothing_to_train(
    context_of: Callable[..., Any], memory: str
) -> None:
    context = context_of(memory)
    assert list(context.memory().policy(None, trainable=False).parameters()) == []
    assert all(p.requires_grad for p in context.memory().policy(None).parameters())


@pytest.mark.parametrize("writer", MEMORIES)
@pytest.mark.parametrize("reader", MEMORIES)
def test_a_folder_of_another_strategy_is_refused(
    context_of: Callable[..., Any], tmp_path: Path, writer: str, reader: str
) -> None:
    context_of(writer).memory().policy(None).save(tmp_path)
    memory = context_of(reader).memory()
    if writer == reader:
        memory.policy(tmp_path)
        return
    with pytest.raises(RecipeError, match=f"'{writer}'.* the recipe has '{reader}'"):
        memory.policy(tmp_path)


@pytest.mark.parametrize(
    ("memory", "writer", "reader", "cause"),
    [
        ("lora", {"rank": 2}, {"rank": 4}, "rank 2, the recipe has 4"),
        ("lora", {"alpha": 8}, {"alpha": 32}, "alpha 8.0, the recipe has 32.0"),
        (
            "hydra",
            {"trainable_layers": 1},
            {"trainable_layers": 2},
            "trainable_layers 1, the recipe has 2",
        ),
        (
            "lora",
            {"target_modules": "[q_proj]"},
            {"target_modules": "[v_proj, q_proj]"},
            r"target_modules \['q_proj'\], the recipe has \['q_proj', 'v_proj'\]",
        ),
    ],
)
def test_a_folder_of_another_shape_is_refused(
    context_of: Callable[..., Any],
    tmp_path: Path,
    memory: str,
    writer: dict[str, Any],
    reader: dict[str, Any],
    cause: str,
) -> None:
    context_of(memory, **writer).memory().policy(None).save(tmp_path)
    with pytest.raises(RecipeError, match=cause):
        context_of(memory, **reader).memory().policy(tmp_path)


def test_an_empty_folder_is_refused(context_of: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="holds no trained weights"):
        context_of("full").memory().policy(tmp_path)

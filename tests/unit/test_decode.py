"""Decoding: exact sampling, a cache that changes nothing, and one seed for one answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rlhf_kit_hf import decode
from torch import Tensor
from toys import PROMPTS, VOCABULARY, hand_logprobs, plain_model, prompts, respond

from rlhf_kit.types import Prompts, Samples

MEMORIES = ("full", "lora", "hydra")


def sample(policy: Any, asked: Prompts, length: int, temperature: float, seed: int) -> Samples:
    return respond(policy, asked, length, temperature, key=seed)


def chi_square(counts: Tensor, expected: Tensor) -> tuple[float, int]:
    """Pearson's statistic over cells with at least five expected, the others pooled."""
    big = expected >= 5
    statistic = ((counts - expected)[big].square() / expected[big]).sum()
    rest = expected[~big].sum()
    if rest > 0:
        statistic = statistic + (counts[~big].sum() - rest).square() / rest
    return float(statistic), int(big.sum())


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_frequencies_are_the_softmax(
    context_of: Callable[..., Any], toy_model: Path, temperature: float
) -> None:
    context = context_of("full")
    asked = prompts(context.tokenizer, ("Hi",))
    with torch.no_grad():
        logits = plain_model(toy_model)(asked.tokens).logits[0, -1].double()
    draws = 12_000
    samples = sample(context.memory().policy(None), asked.repeat(draws), 1, temperature, seed=1)
    counts = torch.bincount(samples.response_tokens[:, 0], minlength=VOCABULARY).double()
    found, cells = chi_square(counts, draws * torch.softmax(logits / temperature, -1))
    assert cells > 40
    assert found < cells + 4 * (2 * cells) ** 0.5  # mean and 4 standard deviations
    # The test can tell: against another temperature it fails by far.
    other, cells = chi_square(counts, draws * torch.softmax(logits / (temperature + 0.2), -1))
    assert other > cells + 20 * (2 * cells) ** 0.5


def test_log_probabilities_average_to_the_entropy(
    context_of: Callable[..., Any], toy_model: Path
) -> None:
    """E[log p(x1 x2)] over sampled pairs is minus the entropy of two steps, summed exactly."""
    context = context_of("lora")
    policy = context.memory().policy(None)
    asked = prompts(context.tokenizer, ("Hi",))
    prompt, eos = asked.tokens[0].tolist(), context.tokenizer.eos_id
    model = plain_model(toy_model)
    with torch.no_grad():
        first = torch.log_softmax(model(torch.tensor([prompt])).logits[0, -1].double(), -1)
        rows = torch.tensor([[*prompt, token] for token in range(VOCABULARY)])
        second = torch.log_softmax(model(rows).logits[:, -1].double(), -1)  # [V, V]
    entropy = -(second.exp() * second).sum(1)
    entropy[eos] = 0.0  # nothing comes after the end
    expected = (first.exp() * (first - entropy)).sum().item()
    samples = sample(policy, asked.repeat(4000), 2, 1.0, seed=2)
    with torch.no_grad():
        found = policy.evaluate(samples).logprobs.sum(1)
    error = found.std().item() / len(found) ** 0.5
    assert abs(found.mean().item() - expected) < 4 * error


@pytest.mark.parametrize("memory", MEMORIES)
def test_one_seed_one_answer(context_of: Callable[..., Any], memory: str) -> None:
    context = context_of(memory)
    policy = context.memory().policy(None)
    asked = prompts(context.tokenizer)
    one = sample(policy, asked, 10, 1.0, seed=1)
    torch.rand(3)  # the global generator has no say
    two = sample(policy, asked, 10, 1.0, seed=1)
    other = sample(policy, asked, 10, 1.0, seed=2)
    assert torch.equal(one.tokens, two.tokens)
    assert torch.equal(one.response_mask, two.response_mask)
    assert one.responses == two.responses
    assert one.responses != other.responses


@pytest.mark.parametrize(
    ("memory", "kind"),
    [(m, "llama") for m in MEMORIES]
    + [("full", "gpt2"), ("lora", "gpt2"), ("hydra", "qwen3"), ("hydra", "neox")],
)
def test_the_cache_changes_nothing(
    context_of: Callable[..., Any],
    toy_models: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    memory: str,
    kind: str,
) -> None:
    """Greedy decoding in one padded batch = the argmax of full, unpadded forward passes."""
    context = context_of(memory, kind)
    policy = context.memory().policy(None)
    asked = prompts(context.tokenizer)
    seen: list[list[Tensor]] = [[] for _ in range(len(asked))]  # of each row
    fed: list[Tensor] = []
    head, step = policy.role.head, decode._step

    def feeding(
        model: Any, tokens: Tensor, mask: Tensor, at: Tensor, rows: Tensor, *rest: Any
    ) -> Any:
        fed.append(rows)
        return step(model, tokens, mask, at, rows, *rest)

    def listening(states: Tensor) -> Tensor:
        logits = head(states)
        for row, each in zip(fed[-1].tolist(), logits, strict=True):
            seen[row].append(each)
        return logits

    monkeypatch.setattr(decode, "_step", feeding)
    policy.role.head = listening
    samples = sample(policy, asked, 8, 1e-4, seed=1)
    del policy.role.head
    model = plain_model(toy_models(kind))
    for i, (row, mask) in enumerate(zip(asked.tokens, asked.mask, strict=True)):
        prompt = row[mask].tolist()
        answer = samples.response_tokens[i][samples.response_mask[i]].tolist()
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits, -1)
        assert logits.argmax(-1).tolist() == answer
        decoded = torch.log_softmax(torch.stack(seen[i][: len(answer)]), -1)
        torch.testing.assert_close(decoded, expected, rtol=0, atol=1e-4)
        greedy = hand_logprobs(model, prompt, answer, 1e-4)
        assert greedy.exp().min() > 0.9  # it was really greedy


def test_stops_when_every_row_has_ended(context_of: Callable[..., Any]) -> None:
    context = context_of("full")
    policy = context.memory().policy(None)
    asked = prompts(context.tokenizer, ("Hi",))
    lengths = set()
    for seed in range(40):
        samples = sample(policy, asked, 100, 1.0, seed=seed)
        lengths.add(samples.response_tokens.shape[1])
        if samples.finished[0]:
            assert samples.response_tokens[0, -1] == context.tokenizer.eos_id
            assert samples.response_mask.all()
        else:
            assert samples.response_tokens.shape[1] == 100
    assert len(lengths) > 5


def test_a_prompt_that_leaves_no_room_is_refused(context_of: Callable[..., Any]) -> None:
    context = context_of("full")
    policy = context.memory().policy(None)
    asked = prompts(context.tokenizer, PROMPTS)
    with pytest.raises(ValueError, match="250 new ones exceed the context of 256"):
        respond(policy, asked, 250)

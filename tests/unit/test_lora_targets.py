"""LoRA on any kind of module: the gradient is its own role's, and what is trained is saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import ANSWERS, texts, train

from rlhf_kit.errors import RecipeError
from rlhf_kit.types import TextBatch

HEADED = "[q_proj, lm_head]"


def many(context: Any) -> TextBatch:
    """More than 512 tokens to predict: the head is applied in chunks and recomputed."""
    answers = [f"{answer} And so on, for long, {i}." * 4 for i, answer in enumerate(ANSWERS)]
    batch = texts(context.tokenizer, *answers)
    assert batch.predicted.sum() > 512
    return batch


def plain_loss(role: Any, batch: TextBatch) -> torch.Tensor:
    """The same likelihood, with all logits at once, in float64 after the head."""
    states = role.hidden(batch.tokens, batch.mask)[:, :-1]
    logits = role.head(states).double()
    chosen = torch.log_softmax(logits, -1).gather(-1, batch.tokens[:, 1:, None]).squeeze(-1)
    return torch.where(batch.predicted, chosen, 0.0).sum()


def shaken(parameters: list[torch.nn.Parameter], seed: int) -> None:
    """Away from the start, where half of an adapter is zero and all adapters are alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in parameters:
            p += 0.1 * torch.randn(p.shape, generator=generator)


@pytest.mark.parametrize("last", ["reward", "reference"])
def test_recomputation_runs_under_the_role_that_ran_forward(
    context_of: Callable[..., Any], last: str
) -> None:
    """Between forward and backward another role of the same backbone answers."""
    context = context_of("lora", rank=4, target_modules=HEADED)
    memory, batch = context.memory(), many(context)
    policy, reward = memory.policy(None), memory.scorer(None)
    mine = list(policy.parameters())
    shaken(mine, 1)
    shaken(list(reward._role.parameters()), 2)
    wanted = torch.autograd.grad(plain_loss(policy.role, batch), mine)
    total = policy.next_token_logprobs(batch).sum()
    if last == "reward":
        total = total + reward.score(batch).sum()
    else:
        with torch.no_grad():
            memory.reference(None).next_token_logprobs(batch)
    found = torch.autograd.grad(total, mine)
    assert max(g.abs().max() for g in wanted) > 1e-2
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=2e-3, atol=2e-3 * float(y.abs().max()) + 1e-6)


def test_binding_leaves_what_is_trained(context_of: Callable[..., Any]) -> None:
    context = context_of("lora", target_modules=HEADED)
    memory, batch = context.memory(), texts(context.tokenizer, *ANSWERS)
    policy, reward = memory.policy(None), memory.scorer(None)

    def trained() -> set[str]:
        return {n for n, p in memory._peft.named_parameters() if p.requires_grad}

    before = trained()
    assert {n.split(".")[-2] for n in before} == {"policy", "reward"}
    with torch.no_grad():
        memory.reference(None).next_token_logprobs(batch)
        assert trained() == before
    reward.score(batch)
    policy.next_token_logprobs(batch)
    assert trained() == before


KINDS = [
    ("llama", "[q_proj, v_proj]"),
    ("llama", "all-linear"),
    ("llama", HEADED),
    ("llama", "[embed_tokens]"),
    ("llama", "[embed_tokens, q_proj, lm_head]"),
    ("qwen3", "[embed_tokens]"),  # tied to the head
    ("qwen3", "[lm_head]"),
    ("qwen3", "[embed_tokens, lm_head]"),
    ("qwen3", "[embed_tokens, q_proj]"),
    ("gpt2", "[c_attn]"),  # a transposed layer
    ("gpt2", "[wte, c_attn]"),
    ("gpt2", "[wpe]"),  # learned positions
    ("neox", "[query_key_value, embed_in, lm_head]"),
    ("opt", "[fc1, embed_tokens]"),
]


@pytest.mark.parametrize(("kind", "modules"), KINDS)
def test_trained_saved_and_reloaded(
    context_of: Callable[..., Any], tmp_path: Path, kind: str, modules: str
) -> None:
    context = context_of("lora", kind, rank=4, target_modules=modules)
    memory = context.memory()
    policy, batch = memory.policy(None), texts(context.tokenizer, *ANSWERS)
    adapters = {id(p): n for n, p in memory._peft.named_parameters() if "lora_" in n}
    mine = list(policy.parameters())
    assert {id(p) for p in mine} == adapters.keys()  # of every target, and nothing else
    for name in ("embed_tokens", "lm_head", "wte", "wpe", "embed_in"):
        assert any(f".{name}." in n for n in adapters.values()) is (name in modules)
    with torch.no_grad():
        base = policy.next_token_logprobs(batch)
    frozen = {n: p.clone() for n, p in memory._peft.named_parameters() if id(p) not in adapters}
    before = [p.detach().clone() for p in mine]
    for _ in range(3):
        train(policy, batch, rate=0.5)
    assert all(not torch.equal(p, old) for p, old in zip(mine, before, strict=True))
    now = dict(memory._peft.named_parameters())
    assert all(torch.equal(now[n], p) for n, p in frozen.items())
    policy.save(tmp_path)
    with torch.no_grad():
        trained = policy.next_token_logprobs(batch)
        again = context.memory().policy(tmp_path).next_token_logprobs(batch)
    assert (trained - base).abs().max() > 1e-2
    assert torch.equal(again, trained)
    state = {n: p.clone() for n, p in policy.state_dict().items()}
    shaken(mine, 3)
    policy.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(policy.next_token_logprobs(batch), trained)


@pytest.mark.parametrize("modules", ["[q_proj]", "[embed_tokens, q_proj]"])
def test_a_role_saves_its_own_adapter_only(
    context_of: Callable[..., Any], tmp_path: Path, modules: str
) -> None:
    """The name of one may be in the name of another: reward, and reward_1."""
    from safetensors.torch import load_file

    context = context_of("lora", rank=4, target_modules=modules)
    memory, batch = context.memory(), texts(context.tokenizer, *ANSWERS)
    models = [memory.scorer(None) for _ in range(3)]
    for seed, model in enumerate(models):
        shaken(list(model.parameters()), seed)
        (tmp_path / str(seed)).mkdir()
        model.save(tmp_path / str(seed))
    with torch.no_grad():
        wanted = [model.score(batch) for model in models]
    for seed, scores in enumerate(wanted):
        folder = tmp_path / str(seed)
        tensors = load_file(folder / "adapter_model.safetensors")
        assert len(tensors) == len(list(models[seed]._role.parameters()))
        with torch.no_grad():
            assert torch.equal(context.memory().scorer(folder).score(batch), scores)


@pytest.mark.parametrize(
    ("kind", "modules"),
    [
        ("llama", "[norm]"),
        ("llama", "[no_such]"),
        ("llama", "[q_proj, no_such]"),
        ("opt", "[embed_positions]"),
    ],
)
def test_what_cannot_be_adapted_is_refused(
    context_of: Callable[..., Any], kind: str, modules: str
) -> None:
    context = context_of("lora", kind, target_modules=modules)
    with pytest.raises(RecipeError, match=r"memory\.target_modules: .*all-linear"):
        context.memory().policy(None)

"""A trunk says what it was computed with, and nobody reads one computed with something else."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rlhf_kit_hf.critic import SeparateCritic
from rlhf_kit_hf.options import SeparateValueOptions
from test_own_model import (
    RM,
    lowest_layer,
    reward_of,
    run_context,
    sampled,
    trained,
    write_recipe,
)
from toys import ANSWERS, PROMPTS, texts

from rlhf_kit.context import StageContext
from rlhf_kit.types import Activations, PackedTexts, PaddedTrunk, Samples, TextBatch, TrunkId

FOREIGN = {
    "backbone": {"backbone": "llama 4 x 32 of other weights"},
    "depth": {"depth": 3},
    "dtype": {"dtype": "bfloat16"},
}
BLOCK = {"use": "hydra", "dtype": "float32", "device": "cpu", "trainable_layers": 2}
BLOCKS: dict[str, dict[str, Any]] = {
    "depth": BLOCK | {"trainable_layers": 1},
    "dtype": BLOCK | {"dtype": "bfloat16"},
    "full": {"use": "full", "dtype": "float32", "device": "cpu"},
    "lora": {"use": "lora", "dtype": "float32", "device": "cpu", "rank": 4},
}


def packed(tokenizer: Any) -> PackedTexts:
    begins = [tokenizer.prompt({"prompt": text}) for text in PROMPTS[:2]]
    ends = [[tokenizer.response(text) for text in ANSWERS[:2]] for _ in begins]
    return PackedTexts.of(begins, ends, tokenizer.pad_id)


def spoiled(samples: Samples) -> Samples:
    """With a trunk that nobody can read unnoticed."""
    assert samples.trunk is not None
    rows = tuple(row * math.nan for row in samples.trunk.rows)
    return replace(samples, trunk=replace(samples.trunk, rows=rows))


def test_a_role_knows_its_trunk(context_of: Callable[..., Any]) -> None:
    origins = {}
    for layers in (1, 2):
        for dtype in ("float32", "bfloat16"):
            memory = context_of("hydra", trainable_layers=layers, dtype=dtype).memory()
            policy = memory.policy(None)
            assert memory.scorer(None).origin == memory.critic(None).origin == policy.role.origin
            origins[layers, dtype] = policy.role.origin
            assert origins[layers, dtype] == TrunkId(memory.backbone, 4 - layers, dtype)
    assert len(set(origins.values())) == 4
    other = context_of("hydra", "qwen3", trainable_layers=2, dtype="float32").memory()
    assert other.scorer(None).origin not in origins.values()
    for kind in ("full", "lora"):
        assert context_of(kind).memory().scorer(None).origin is None


@pytest.mark.parametrize("memory", ["hydra", "full", "lora"])
@pytest.mark.parametrize("difference", FOREIGN)
def test_a_foreign_trunk_is_refused(
    context_of: Callable[..., Any], memory: str, difference: str
) -> None:
    """By everything that reads texts or samples; none computes with it in silence."""
    source = context_of("hydra")
    samples = sampled(source.memory(), source.tokenizer)
    assert samples.trunk is not None
    foreign = replace(samples.trunk.origin, **FOREIGN[difference])
    samples = replace(samples, trunk=replace(samples.trunk, origin=foreign))
    context = context_of(memory)
    strategy = context.memory()
    policy, reward = strategy.policy(None), strategy.scorer(None)
    batch, several = texts(context.tokenizer, *ANSWERS), packed(context.tokenizer)
    encoder = source.memory().scorer(None)
    trunk = encoder._role.encode(batch.tokens, batch.mask)
    batch = replace(batch, trunk=replace(trunk, origin=foreign))
    kept = encoder.encode(several).trunk
    several = replace(several, trunk=replace(kept, origin=foreign))
    readers: list[Callable[[], Any]] = [
        lambda: policy.evaluate(samples),
        lambda: policy.next_token_logprobs(batch),
        lambda: strategy.reference(None).evaluate(samples),
        lambda: reward(samples),
        lambda: reward.score(batch),
        lambda: reward.compare(several),
        lambda: strategy.critic(None).values(samples),
    ]
    for read in readers:
        with pytest.raises(
            ValueError, match=r"trunk: a role that .* was given activations of"
        ) as c:
            read()
        assert str(foreign) in str(c.value)
        own = policy.role.origin
        assert ("has no trunk" if own is None else f"continues {own} ") in str(c.value)


def test_its_own_trunk_is_read(context_of: Callable[..., Any]) -> None:
    """Or the test above would pass for a role that reads none."""
    context = context_of("hydra")
    strategy = context.memory()
    samples = spoiled(sampled(strategy, context.tokenizer))
    assert strategy.policy(None).evaluate(samples).logprobs.isnan().any()
    assert strategy.scorer(None)(samples).isnan().all()
    assert strategy.critic(None, init_std=0.1).values(samples).isnan().any()


def test_activations_of_two_origins_are_not_joined() -> None:
    origin, mask = TrunkId("toy", 2, "float32"), torch.ones((1, 2), dtype=torch.bool)
    one = Activations.of(PaddedTrunk(torch.zeros(1, 2, 4), origin), mask)
    other = replace(one, origin=replace(origin, depth=3))
    assert len(Activations.join([one, one])) == 2
    with pytest.raises(ValueError, match=r"of 2 origins .* toy, 2 layers .*; toy, 3 layers"):
        Activations.join([one, other, one])


def setup(tmp_path: Path, model: Path, own: dict[str, Any] | None) -> tuple[Any, StageContext]:
    """A run whose policy is on hydra and whose reward model has ``own`` memory, or the policy's."""
    blocks = {} if own is None else {"memory": own}
    run = run_context(write_recipe(tmp_path, model, "hydra", blocks))
    trained(run)
    return run, StageContext(run, "ppo")


@pytest.mark.parametrize("asked", ["once", "again", "in between"])
@pytest.mark.parametrize("own", BLOCKS)
def test_a_reward_model_of_another_memory_block_scores_from_the_tokens(
    toy_model: Path, tmp_path: Path, own: str, asked: str
) -> None:
    """The same tokens mean the same to it; the policy's activations do not."""
    run, context = setup(tmp_path, toy_model, BLOCKS[own])
    memory, reward = context.memory(), reward_of(context)
    held: list[Any] = [context.memory()] if asked == "again" else []
    if asked == "in between":
        held += [context.memory(RM), context.memory()]
    reward.load(memory)
    samples = sampled(memory, context.tokenizer)
    folder = run.stage_folder("reward_model")
    alone = StageContext(run, "reward_model").memory().scorer(folder, trainable=False)
    wanted = alone(replace(samples, trunk=None))
    assert wanted.std() > 0.01
    # Not the text, cut again.
    samples = replace(samples, decode=lambda tokens: pytest.fail("asked for text"))
    assert torch.equal(reward(samples), wanted)
    assert torch.equal(reward(spoiled(samples)), wanted)
    critic = SeparateCritic(SeparateValueOptions(start=RM), context)
    critic.load(memory)
    other = StageContext(run, "reward_model").memory().critic(folder)
    values = other.values(replace(samples, trunk=None))
    assert torch.equal(critic(torch.zeros(0), samples), values)
    assert torch.equal(critic(torch.zeros(0), spoiled(samples)), values)


@pytest.mark.parametrize("asked", ["once", "again", "in between"])
def test_a_reward_model_of_the_same_block_reads_the_policys_trunk(
    toy_model: Path, tmp_path: Path, asked: str
) -> None:
    """Whoever else has asked for a memory: before, only of the object that was given last."""
    run, context = setup(tmp_path, toy_model, None)
    memory, reward = context.memory(), reward_of(context)
    held: list[Any] = [context.memory()] if asked == "again" else []
    if asked == "in between":
        held += [context.memory(RM), context.memory()]
    reward.load(memory)
    critic = SeparateCritic(SeparateValueOptions(start=RM), context)
    critic.load(memory)
    samples = sampled(memory, context.tokenizer)
    calls: list[int] = []
    lowest_layer(reward).register_forward_hook(lambda *_: calls.append(1))
    scores, values = reward(samples), critic(torch.zeros(0), samples)
    assert not calls
    folder = run.stage_folder("reward_model")
    alone = StageContext(run, "reward_model").memory().scorer(folder, trainable=False)
    fresh = replace(samples, trunk=None)
    torch.testing.assert_close(scores, alone(fresh), rtol=0, atol=2e-5)
    mask = samples.response_mask
    torch.testing.assert_close(values[mask], alone.values(fresh)[mask], rtol=0, atol=2e-5)


def test_equal_origins_are_shared_between_memories(context_of: Callable[..., Any]) -> None:
    """Which object computed it does not matter: the same frozen weights, depth and precision."""
    first, second = (context_of("hydra") for _ in range(2))
    one, other = first.memory(), second.memory()
    assert one.model is not other.model
    samples = sampled(one, first.tokenizer)
    policy, stranger = one.policy(None), other.policy(None)
    assert samples.read_by(stranger.role.origin) is samples
    assert torch.equal(stranger.evaluate(samples).logprobs, policy.evaluate(samples).logprobs)
    assert samples.read_by(None).trunk is None


def test_a_text_batch_keeps_the_origin(context_of: Callable[..., Any]) -> None:
    context = context_of("hydra")
    model = context.memory().scorer(None)
    encoded = model.encode(packed(context.tokenizer))
    assert encoded.trunk is not None and encoded.trunk.origin == model.origin
    rows: TextBatch = encoded.select(torch.tensor([1])).unpacked()[0]
    assert rows.trunk is not None and rows.trunk.origin == model.origin
    torch.testing.assert_close(
        model.compare(encoded), model.compare(packed(context.tokenizer)), rtol=0, atol=2e-5
    )

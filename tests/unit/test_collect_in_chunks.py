"""A rollout may be sampled and scored in chunks; the parts join to what they were."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rlhf_kit_hf.sampler import DecodeSampler
from toy_runs import metrics, one_stage, run
from toys import prompts, respond

from rlhf_kit.errors import DataError, RecipeError
from rlhf_kit.recipe import open_recipe
from rlhf_kit.run import run_recipe
from rlhf_kit.types import Rollout, Samples, Sampling


@pytest.mark.parametrize("memory", ["hydra", "lora", "full"])
def test_joined_chunks_mean_what_they_meant(context_of: Callable[..., Any], memory: str) -> None:
    """Prompts and responses of other widths, and the captured trunk, are padded in place."""
    context = context_of(memory)
    policy = context.memory().policy(None)
    everyone = prompts(context.tokenizer)
    chunks = [everyone.select(torch.tensor(rows)) for rows in ([0], [1, 3], [2])]
    assert len({chunk.tokens.shape[1] for chunk in chunks}) > 1
    parts = [
        respond(policy, chunk, longest, key=3)
        for chunk, longest in zip(chunks, (7, 3, 5), strict=True)
    ]
    assert len({part.response_tokens.shape[1] for part in parts}) > 1
    whole = Samples.join(parts)
    assert whole.responses == [text for part in parts for text in part.responses]
    assert whole.rows == [row for part in parts for row in part.rows]
    assert whole.group.tolist() == [0, 1, 3, 2]
    mask = whole.response_mask
    alone = [policy.evaluate(part).logprobs[part.response_mask] for part in parts]
    torch.testing.assert_close(
        policy.evaluate(whole).logprobs[mask], torch.cat(alone), rtol=1e-5, atol=1e-5
    )
    assert whole.sampled_logprobs is not None
    torch.testing.assert_close(whole.sampled_logprobs[mask], torch.cat(alone), rtol=1e-4, atol=1e-4)
    ones = [torch.ones(part.response_mask.shape) for part in parts]
    scores = [torch.arange(float(len(part))) for part in parts]
    rollout = Rollout.join(
        [
            Rollout(part, one, 2 * one, 3 * one, score, {"a": -score})
            for part, one, score in zip(parts, ones, scores, strict=True)
        ]
    )
    assert rollout.scores.tolist() == [0.0, 0.0, 1.0, 0.0]
    assert rollout.components["a"].tolist() == [0.0, 0.0, -1.0, 0.0]
    assert rollout.values is not None
    assert (rollout.logprobs[mask] == 1).all()
    assert (rollout.values[mask] == 3).all()


def test_ppo_honours_the_batch_size_of_its_sampling(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The responses to one prompt stay together, since a reward may compare them."""
    sizes: list[int] = []
    draw = DecodeSampler.__call__

    def counted(self: Any, policy: Any, given: Any, sampling: Sampling) -> Samples:
        sizes.append(len(given))
        return draw(self, policy, given, sampling)

    monkeypatch.setattr(DecodeSampler, "__call__", counted)
    changes = {"steps": 1, "gate": {"check": False}, "samples_per_prompt": 2, "rollout_batch": 8}
    recipe = one_stage(tmp_path / "project", toy_model, **changes)
    run(recipe, tmp_path / "run", "ppo.sampling.batch_size=5")
    assert sizes == [4, 4]
    assert metrics(tmp_path / "run")[0]["kl"] == 0.0


def test_long_prompts_are_left_out_where_the_recipe_says_so(
    toy_model: Path, tmp_path: Path
) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, steps=1, gate={"check": False})
    run(recipe, tmp_path / "run", "ppo.max_prompt_tokens=60")
    resolved, *_ = open_recipe(recipe, ["ppo.max_prompt_tokens=3"])
    with pytest.raises(DataError, match="none of 8 prompts has at most 3 tokens"):
        run_recipe(resolved, open_recipe(recipe)[1], out=tmp_path / "none", plain=True)


def test_full_weights_are_refused_where_the_tokens_are_others(
    context_of: Callable[..., Any], tmp_path: Path
) -> None:
    """A folder under `full` is complete but for the tokenizer, and would load in silence."""
    context = context_of("full")
    strategy = context.memory()
    strategy.policy(None).save(tmp_path)
    strategy._inner.tokenizer = Shifted(strategy.tokenizer)
    with pytest.raises(RecipeError, match="memory tokenizer"):
        strategy.policy(tmp_path)


class Shifted:
    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def text(self, text: str) -> list[int]:
        return [token + 1 for token in self._tokenizer.text(text)]


def test_a_strangers_reward_may_have_a_tokenizer_of_any_kind(
    toy_model: Path, tmp_path: Path
) -> None:
    """The gate asks only what is a rlhf_kit tokenizer, and only mappings for their parts."""
    reward = """
class Scorer:
    tokenizer, parts = object(), ["a", "b"]
    def __call__(self, responses):
        return [float(len(text)) for text in responses]

reward = Scorer()
"""
    recipe = one_stage(tmp_path / "project", toy_model, steps=1, reward=reward)
    run(recipe, tmp_path / "run")
    assert metrics(tmp_path / "run")[0]["kl"] == 0.0

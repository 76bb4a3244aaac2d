"""PPO makes a trained language model say more of what is rewarded, and stays close to it."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_kit.recipe import open_recipe
from rlhf_kit.run import run_recipe

# The share of words about her: about 4 in 100 in what the model says by itself.
REWARD = """
WANTED = {"she", "her", "alice", "queen", "sylvie"}

def reward(responses):
    words = [[w.strip(".,!?;:()“”‘’*_-").lower() for w in text.split()] for text in responses]
    return [5 * sum(w in WANTED for w in row) / max(len(row), 1) for row in words]
"""

BEGINNINGS = (
    "Once upon a time there was a",
    "At last the",
    "In the garden",
    "“What is that?” said",
    "The old man",
    "It was a bright day, and",
    "Nobody knew why",
    "Down the long road",
)
HELD_OUT = (
    "There was once a",
    "And then the",
    "By the river",
    "“Where are you going?” asked",
    "The next morning the",
    "One day a",
    "The old house",
    "Behind the high wall",
)
COUNT = 14
RATES = {"hydra": 7e-4, "lora": 2e-3, "full": 3e-4}


def project(folder: Path, model: Path, memory: str, kl_coef: float) -> Path:
    (folder / "reward.py").write_text(REWARD)
    rows = [{"prompt": text, "split": "train"} for text in BEGINNINGS]
    rows += [{"prompt": text, "split": "test"} for text in HELD_OUT]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reward = {"use": "python", "path": "reward.py"}
    strategy: dict[str, Any] = {"use": memory, "dtype": "float32", "device": "cpu"}
    if memory == "hydra":
        strategy["trainable_layers"] = 2
    values = {
        "seed": 0,
        "model": {"use": "pretrained", "name": str(model)},
        "memory": strategy,
        "data": {"prompts": {"use": "prompts", "path": "prompts.jsonl"}},
        "stages": {
            "ppo": {
                "use": "ppo_ptx",
                "reward": reward,
                "kl": {"coef": kl_coef},
                "steps": COUNT,
                "rollout_batch": 64,
                "minibatch": 32,
                "micro_batch": 32,
                "inner_epochs": 2,
                "sampling": {"max_new_tokens": 24},
                "optimizer": {"learning_rate": RATES[memory], "warmup_steps": 4},
                "critic": {"learning_rate": 1e-2},
                "gate": {"skip": ["end"]},  # this model's stories are longer than any response here
            },
            "evaluate": {
                "use": "evaluate",
                "candidates": {"ppo": "ppo"},
                "gold": reward,
                "samples_per_prompt": 24,
                "sampling": {"max_new_tokens": 24, "batch_size": 192},
            },
        },
    }
    path = folder / "rises.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@dataclass
class Learned:
    summary: dict[str, Any]
    rows: list[dict[str, float]]  # the metrics of each PPO step
    scores: dict[str, list[float]]  # held out, of the policy and of what it came from


@pytest.fixture(scope="module")
def learn(
    trained_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, float], Learned]:
    """Train and evaluate, once for each strategy and KL coefficient."""

    @cache
    def learned(memory: str, kl_coef: float) -> Learned:
        folder = tmp_path_factory.mktemp("learning")
        recipe, loaded, _ = open_recipe(project(folder, trained_model, memory, kl_coef))
        out = folder / "run"
        summary = run_recipe(recipe, loaded, out=out, plain=True)
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        pairs = json.loads((out / "stages/evaluate/samples.json").read_text())
        scores = {name: [p["gold"][name] for p in pairs] for name in ("baseline", "ppo")}
        return Learned(summary, rows, scores)

    return learned


@pytest.mark.parametrize("memory", ["hydra", "lora", "full"])
def test_reward_rises(learn: Callable[[str, float], Learned], memory: str) -> None:
    found = learn(memory, 0.1)
    assert [row["step"] for row in found.rows] == list(range(COUNT))
    assert found.rows[0]["kl"] == 0
    means = {name: statistics.mean(values) for name, values in found.scores.items()}
    error = math.sqrt(sum(statistics.variance(v) / len(v) for v in found.scores.values()))
    rise = means["ppo"] - means["baseline"]
    assert 0.05 < means["baseline"] < 0.4  # what the model does by itself
    assert rise > 5 * error
    assert rise > 0.25  # on beginnings that it has not seen
    # The samples seen in training rose as well, and the summary says the same.
    first, last = found.rows[:4], found.rows[-4:]
    begin, end = (statistics.mean(row["score"] for row in part) for part in (first, last))
    assert end - begin > 0.2
    assert found.summary["gold_score"]["ppo"] == pytest.approx(means["ppo"], abs=1e-4)
    assert found.summary["win_rate_ci"]["ppo"][0] > 0.5
    # It has moved for it, but not far: a collapsed policy is tens of nats away.
    assert 0.5 < found.summary["kl"]["ppo"] < 15


def test_a_larger_coefficient_holds_it_closer(learn: Callable[[str, float], Learned]) -> None:
    loose, tight = learn("hydra", 0.1).summary, learn("hydra", 2.0).summary
    assert tight["kl"]["ppo"] < 0.5 * loose["kl"]["ppo"]
    assert tight["gold_score"]["ppo"] < loose["gold_score"]["ppo"]

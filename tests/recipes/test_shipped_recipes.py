"""Every shipped recipe is right, and the quickstart runs end to end on a toy model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from toys import CONTEXT, REWARD

from rlhf_kit.recipe import open_recipe
from rlhf_kit.run import run_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
SHIPPED = sorted(RECIPES.rglob("*.yaml"))

SMALL = (
    "memory.dtype=float32",
    "memory.device=cpu",
    "sft.epochs=1",
    "collect.train_prompts=6",
    "collect.validation_prompts=3",
    "collect.sampling.max_new_tokens=8",
    "collect.completions=3",
    "reward_model.epochs=1",
    "reward_model.batch_size=3",
    "reward_model.clear_margin=0",
    "ppo.steps=2",
    "ppo.rollout_batch=8",
    "ppo.minibatch=4",
    "ppo.sampling.max_new_tokens=8",
    "ppo.ptx.length=32",
    "ppo.optimizer={learning_rate: 1e-2, warmup_steps: 0}",
    "evaluate.samples_per_prompt=1",
    "evaluate.sampling.max_new_tokens=8",
    "evaluate.pretraining_tokens=256",
    "evaluate.pretraining_length=64",
)


def labeler(folder: Path) -> str:
    """Random text has no sentiment, and a labeler that finds everything alike ranks nothing."""
    (folder / "reward.py").write_text(REWARD)
    reward = f"{{use: python, path: {folder / 'reward.py'}}}"
    return f"collect.labeler={{use: scripted, reward: {reward}}}"


def test_there_are_recipes() -> None:
    assert RECIPES / "quickstart.yaml" in SHIPPED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(RECIPES)))
def test_shipped_recipe_is_right(path: Path) -> None:
    recipe, loaded, _ = open_recipe(path)
    assert recipe.stages
    assert not loaded.broken


def at(values: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


FINITE = (
    "gold_score.baseline",
    "gold_score.ppo",
    "win_rate.ppo",
    "kl.ppo",
    "perplexity.baseline",
    "perplexity.ppo",
    "response_length.baseline",
    "response_length.ppo",
    "seconds.sft",
    "seconds.collect",
    "seconds.reward_model",
    "seconds.ppo",
    "seconds.evaluate",
    "seconds.total",
    "peak_rss_mib",
)


@pytest.mark.parametrize("memory", ["hydra", "lora", "full"])
def test_quickstart_end_to_end(
    toy_model: Path, tmp_path: Path, memory: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("vaderSentiment")
    model = f"model={{use: pretrained, name: {toy_model}}}"
    strategy = f"memory={{use: {memory}, trainable_layers: 2}}"
    if memory != "hydra":
        strategy = f"memory={memory}"
    changes = [model, strategy, labeler(tmp_path), *SMALL]
    recipe, loaded, _ = open_recipe(RECIPES / "quickstart.yaml", changes)
    out = tmp_path / "run"
    returned = run_recipe(recipe, loaded, out=out, plain=True)

    summary = json.loads((out / "summary.json").read_text())
    assert summary == json.loads(json.dumps(returned))
    for key in FINITE:
        assert math.isfinite(at(summary, key)), key
    assert summary["seed"] == 0
    # Of responses that were cut to pairs with any difference there may be none.
    assert summary["rm_pair_accuracy"] is None or 0 <= summary["rm_pair_accuracy"] <= 1
    low, high = summary["win_rate_ci"]["ppo"]
    assert 0 <= low <= summary["win_rate"]["ppo"] <= high <= 1
    assert summary["kl"]["ppo"] != 0  # PPO has moved
    assert summary["perplexity"]["baseline"] != summary["perplexity"]["ppo"]
    stages = summary["seconds"].keys() - {"total"}
    assert summary["seconds"]["total"] >= sum(summary["seconds"][s] for s in stages) - 0.5
    assert summary["peak_rss_mib"] > 100

    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    ppo = [row for row in rows if row["stage"] == "ppo"]
    assert [row["step"] for row in ppo] == [0, 1]
    assert ppo[0]["kl"] == 0  # the reference is where PPO starts
    assert len((out / "stages/collect/comparisons.jsonl").read_text().splitlines()) <= 9
    for stage in ("sft", "reward_model", "ppo"):
        files = sorted((out / "stages" / stage).glob("*.safetensors"))
        assert files
        for file in files:
            with safe_open(file, "pt") as tensors:
                assert len(list(tensors.keys())) > 0
    assert not list(out.rglob("*.pt"))  # checkpoints have served
    shown = capsys.readouterr().err
    for line in ("[ppo] step 2/2", "[evaluate] prompt: ", "gold_score.ppo", "done in"):
        assert line in shown


PUBLISHED = sorted(RECIPES.glob("instructgpt-*.yaml"))


def test_published_recipes_are_there() -> None:
    names = [path.stem.removeprefix("instructgpt-") for path in PUBLISHED]
    assert sorted(names) == ["1.3b", "1.3b-ppo", "175b", "6b"]


SMALL_PUBLISHED = (
    "model.max_length=null",
    "memory={use: full, dtype: float32, device: cpu}",
    "reward_model.batch_size=16",
    "reward_model.optimizer.learning_rate=1e-3",
    "sft.epochs=1",
    "sft.batch_size=128",
    "sft.select_prompts=4",
    "sft.sampling={max_new_tokens: 4}",
    "ppo_init.epochs=1",
    "ppo_init.batch_size=128",
    "ppo_init.pretraining_length=32",
    "ppo.steps=2",
    "ppo.rollout_batch=8",
    "ppo.minibatch=4",
    "ppo.optimizer={learning_rate: 1e-3, warmup_steps: 0}",
    "ppo.sampling={max_new_tokens: 6}",
    "ppo.max_prompt_tokens=100",
    "evaluate.samples_per_prompt=1",
    "evaluate.sampling={max_new_tokens: 4}",
)


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda p: p.stem)
def test_published_recipe_runs_two_steps(
    path: Path, toy_models: Callable[[str], Path], tmp_path: Path
) -> None:
    """The recipe as it stands, on a toy of its own family; a policy of another size where it has.

    one: half the layers for the reward model and the critic.
    """
    model, text = toy_models("opt"), path.read_text()
    changes = [*SMALL_PUBLISHED, f"model.name={model}"]
    if "reward_model.model" not in text and "facebook/opt-6.7b, max_length" in text:
        small = f"{{use: pretrained, name: {model}, layers: 2}}"
        changes.append(f"reward_model.model={small}")
        changes.append("reward_model.memory={use: full, dtype: float32, device: cpu}")
    if "ptx: null" not in text:
        changes += ["ppo.ptx.length=32", "ppo.ptx.per_episode=0.5"]
        changes += ["evaluate.pretraining_length=64", "evaluate.pretraining_tokens=256"]
    recipe, loaded, _ = open_recipe(path, changes)
    summary = run_recipe(recipe, loaded, out=tmp_path / "run", plain=True)
    assert math.isfinite(summary["gold_score"]["ppo"])
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    ppo = [row for row in rows if row["stage"] == "ppo"]
    assert [row["step"] for row in ppo] == [0, 1]
    assert ppo[0]["kl"] == 0
    assert ("ptx/loss" in ppo[0]) == (not path.stem.endswith("-ppo"))
    assert summary["stages"]["ppo"]["average"]["averaged"]["kl"] != 0
    assert (tmp_path / "run/stages/ppo/critic").is_dir()


def test_overoptimisation_runs_and_is_drawn(toy_model: Path, tmp_path: Path) -> None:
    """Two reward models of different depths, PPO and best-of-n against each, and the script."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("vaderSentiment")
    from click.testing import CliRunner
    from rlhf_kit_evaluation.overoptimisation import main

    changes = [
        f"model={{use: pretrained, name: {toy_model}}}",
        "memory={use: hydra, trainable_layers: 2, dtype: float32, device: cpu}",
        labeler(tmp_path),
        "sft.epochs=1",
        "collect.train_prompts=8",
        "collect.validation_prompts=4",
        "collect.sampling.max_new_tokens=6",
        f"rm_small.model={{use: pretrained, name: {toy_model}, layers: 2}}",
        "rm_small.memory={use: hydra, trainable_layers: 1, dtype: float32, device: cpu}",
        "best_of_n.most_prompts=3",
        "best_of_n.samples_per_prompt=16",
        "best_of_n.sampling={max_new_tokens: 6}",
        f"best_of_n.gold={{use: python, path: {tmp_path / 'reward.py'}}}",
    ]
    for name in ("small", "large"):
        proxy = f"{name}: {{use: reward_model, from: rm_{name}}}"
        gold = f"gold: {{use: python, path: {tmp_path / 'reward.py'}}}"
        changes += [
            f"ppo_{name}.reward={{use: weighted_sum, rewards: {{{proxy}, {gold}}}, "
            "weights: {gold: 0}}",
            f"ppo_{name}.steps=6",
            f"ppo_{name}.rollout_batch=8",
            f"ppo_{name}.minibatch=4",
            f"ppo_{name}.sampling={{max_new_tokens: 6}}",
            f"ppo_{name}.optimizer={{learning_rate: 1e-2, warmup_steps: 0}}",
        ]
    recipe, loaded, _ = open_recipe(RECIPES / "overoptimisation.yaml", changes)
    run_recipe(recipe, loaded, out=tmp_path / "run", plain=True)
    result = CliRunner().invoke(main, [str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    curves = json.loads((tmp_path / "run/overoptimisation.json").read_text())
    assert [(c["method"], c["name"]) for c in curves] == [
        ("ppo", "small"),
        ("ppo", "large"),
        ("best of n", "small"),
        ("best of n", "large"),
    ]
    for curve in curves:
        assert curve["kl"][0] == 0
        assert max(curve["kl"]) > 0
        for kind in ("proxy", "gold"):
            assert curve["fits"][kind]["r_squared"] <= 1
    assert (tmp_path / "run/overoptimisation.png").is_file()


def hh_pairs() -> list[dict[str, Any]]:
    questions = ("Where is the sea?", "Who are you?", "Is tea hot?", "Why?", "May I?", "How far?")
    return [
        {
            "chosen": f"\n\nHuman: {q}\n\nAssistant: Gladly: it is {'near' * (i % 3 + 1)}.",
            "rejected": f"\n\nHuman: {q}\n\nAssistant: No.",
        }
        for i, q in enumerate(q + f" ({n})" for n in range(5) for q in questions)
    ]


def oasst_trees() -> list[dict[str, Any]]:
    """Three replies each, ranked."""

    def message(id: str, text: str, role: str, **more: Any) -> dict[str, Any]:
        common = {"lang": "en", "review_result": True, "deleted": False, "replies": []}
        return {"message_id": id, "text": text, "role": role, **common, **more}

    trees = []
    for n, row in enumerate(hh_pairs()):
        question = row["chosen"].split("Human: ")[1].split("\n")[0]
        replies = [
            message(f"{n}-{k}", f"Reply {k} to {n}", "assistant", rank=k, parent_id=str(n))
            for k in range(3)
        ]
        prompt = message(str(n), question, "prompter", replies=replies)
        trees.append(
            {"message_tree_id": str(n), "tree_state": "ready_for_export", "prompt": prompt}
        )
    return trees


@pytest.mark.parametrize(("name", "rows"), [("hh", hh_pairs()), ("oasst", oasst_trees())])
def test_reward_models_of_peoples_preferences(
    toy_model: Path, tmp_path: Path, name: str, rows: list[dict[str, Any]]
) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = [
        f"model={{use: pretrained, name: {toy_model}}}",
        "memory={use: hydra, trainable_layers: 2, dtype: float32, device: cpu}",
        f"data.comparisons.source={file}",
        "reward_model.batch_size=8",
    ]
    recipe, loaded, _ = open_recipe(RECIPES / f"reward-model-{name}.yaml", changes)
    summary = run_recipe(recipe, loaded, out=tmp_path / "run", plain=True)
    found = summary["reward_model"]
    assert found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"]
    assert found["pairs"] >= 2
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert len(lines) >= 2


def test_toy_recipe_of_the_fixtures_is_right(toy_recipe: Callable[..., Path]) -> None:
    recipe, _, _ = open_recipe(toy_recipe("lora", ppo={"steps": 7}, seed=9))
    assert list(recipe.stages) == ["sft", "collect", "reward_model", "ppo", "evaluate"]
    options: Any = recipe.stages["ppo"].part.options
    assert (options.steps, options.kl.coef, recipe.seed) == (7, 0.02, 9)
    assert CONTEXT == 256

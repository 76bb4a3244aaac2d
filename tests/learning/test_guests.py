"""Algorithms of a stranger's package teach a trained language model what they are for."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_reward_rises import project

from rlhf_kit.recipe import open_recipe
from rlhf_kit.run import run_recipe

pytest.importorskip("rlhf_kit_guests", reason="pip install -e plugins/guests")

SETTINGS = (
    ("Once upon a time there was a", "by the sea"),
    ("At last the", "in the garden"),
    ("It was a bright day, and the", "at the door"),
    ("Nobody knew why the", "under the tree"),
    ("Down the long road the", "on the hill"),
    ("Every morning the", "near the river"),
)
# What is held out shares neither its beginning nor its deed with what is learned from.
UNSEEN = (
    ("After the rain a", "behind the wall"),
    ("Long ago the", "in the old house"),
    ("On the way home the", "with a lamp"),
)
DEEDS = ("looked at {} hand", "took {} hat", "went to {} room", "lost {} book")
OTHER_DEEDS = ("opened {} eyes", "called {} dog", "heard {} voice", "washed {} face")
HERS, HIS = ("queen", "she", "her"), ("king", "he", "his")


def told(who: tuple[str, str, str], deed: str, place: str) -> str:
    title, pronoun, possessive = who
    return f" {title} and {pronoun} {deed.format(possessive)} {place}."


def comparisons() -> Iterator[dict[str, Any]]:
    """Of each story one about her, which is better, and one about him, else the same."""
    for split, settings, deeds in (
        ("train", SETTINGS, DEEDS),
        ("validation", UNSEEN, OTHER_DEEDS),
    ):
        for begin, place in settings:
            for i, deed in enumerate(deeds):
                # The better one stands first or second by turns.
                texts = [told(who, deed, place) for who in (HERS, HIS)]
                order = (0, 1) if i % 2 else (1, 0)
                row = {"prompt": begin, "completions": [texts[k] for k in order]}
                yield {**row, "ranks": list(order), "split": split}


def changed(recipe: Path, seed: int, **stages: dict[str, Any]) -> Path:
    """The recipe of ``project`` with another seed and other stages."""
    values = yaml.safe_load(recipe.read_text())
    values |= {"seed": seed, "stages": stages}
    recipe.write_text(yaml.safe_dump(values, sort_keys=False))
    return recipe


def online(folder: Path, model: Path, seed: int, **loss: Any) -> Path:
    """PPO's stage with GRPO's parts: no critic, and the KL in the loss alone."""
    recipe = project(folder, model, "hydra", 0.0)
    stages = yaml.safe_load(recipe.read_text())["stages"]
    del stages["ppo"]["critic"]
    stages["ppo"] |= {
        "advantage": "grpo",
        "policy_loss": {"use": "grpo", **loss},
        "samples_per_prompt": 4,
        "steps": 10,
    }
    stages["evaluate"]["samples_per_prompt"] = 12
    return changed(recipe, seed, **stages)


def offline(folder: Path, model: Path, seed: int, use: str) -> Path:
    """A stage that learns from comparisons."""
    recipe = project(folder, model, "hydra", 0.0)
    values = yaml.safe_load(recipe.read_text())
    rows = "".join(json.dumps(row) + "\n" for row in comparisons())
    (folder / "comparisons.jsonl").write_text(rows)
    values["data"] = {"comparisons": {"use": "comparisons", "path": "comparisons.jsonl"}}
    recipe.write_text(yaml.safe_dump(values, sort_keys=False))
    learns = {
        "use": use,
        "comparisons": "comparisons",
        "epochs": 3,
        "batch_size": 16,
        "micro_batch": 16,
        "optimizer": {"learning_rate": 3e-4, "warmup_steps": 0},
    }
    return changed(recipe, seed, learns=learns)


def learned(recipe: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary, and the metrics of each step."""
    out = recipe.parent / "run"
    resolved, loaded, _ = open_recipe(recipe)
    summary = run_recipe(resolved, loaded, out=out, plain=True)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return summary, rows


def rise(run: Path) -> tuple[float, float]:
    """By how much held-out scores have risen, and the standard error of that."""
    pairs = json.loads((run / "stages/evaluate/samples.json").read_text())
    scores = [[pair["gold"][key] for pair in pairs] for key in ("baseline", "ppo")]
    error = math.sqrt(sum(statistics.variance(values) / len(values) for values in scores))
    return statistics.mean(scores[1]) - statistics.mean(scores[0]), error


def test_grpo_raises_its_reward(trained_model: Path, tmp_path: Path) -> None:
    summary, rows = learned(online(tmp_path, trained_model, 0))
    above, error = rise(tmp_path / "run")
    assert above > 5 * error
    assert above > 0.25
    first, last = (statistics.mean(row["score"] for row in part) for part in (rows[:3], rows[-3:]))
    assert last - first > 0.2
    # k3 is what the loss says of it, and it is no penalty in the rewards.
    assert rows[0]["kl"] == 0
    assert rows[-1]["policy/kl"] > 0
    assert 0.5 < summary["kl"]["ppo"] < 15


def test_k3_in_the_loss_holds_the_policy(trained_model: Path, tmp_path: Path) -> None:
    found = []
    for beta in (0.0, 2.0):
        folder = tmp_path / str(beta)
        folder.mkdir()
        recipe = online(folder, trained_model, 0, beta=beta)
        stages = yaml.safe_load(recipe.read_text())["stages"]
        _, rows = learned(changed(recipe, 0, ppo=stages["ppo"] | {"steps": 6}))
        found.append(rows[-1]["kl"])
    assert found[1] < 0.5 * found[0]


def test_dpo_raises_the_accuracy_of_its_reward(trained_model: Path, tmp_path: Path) -> None:
    summary, rows = learned(offline(tmp_path, trained_model, 0, "dpo"))
    assert rows[0]["dpo/accuracy"] == 0.5  # where it starts, both answers are level
    assert rows[0]["dpo/loss"] == pytest.approx(math.log(2), abs=1e-6)
    held_out = summary["preference"]
    assert held_out["accuracy"] > 0.8  # of beginnings, deeds and places that it has not seen
    assert held_out["margin"] > 6


def test_kto_raises_its_gap(trained_model: Path, tmp_path: Path) -> None:
    summary, rows = learned(offline(tmp_path, trained_model, 0, "kto"))
    assert rows[0]["kto/loss"] == pytest.approx(0.5, abs=1e-6)
    gaps = [row["validation/gap"] for row in rows if "validation/gap" in row]
    assert gaps == sorted(gaps)
    assert summary["preference"]["gap"] > 8

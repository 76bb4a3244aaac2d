"""What another memory block has trained: refused by `check` exactly where it cannot be loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from toy_plugins import finished_stage
from toy_runs import one_stage
from toys import ANSWERS, texts, write_toy_recipe

from rlhf_kit.context import RunContext, StageContext
from rlhf_kit.errors import RecipeError
from rlhf_kit.recipe import open_recipe
from rlhf_kit.run import run_recipe

COMMON = {"dtype": "float32", "device": "cpu"}
BLOCKS: dict[str, dict[str, Any]] = {
    "full": {"use": "full", **COMMON},
    "full half": {"use": "full", **COMMON, "dtype": "bfloat16"},
    "hydra": {"use": "hydra", **COMMON, "trainable_layers": 2},
    "hydra half": {"use": "hydra", **COMMON, "trainable_layers": 2, "dtype": "bfloat16"},
    "hydra 1": {"use": "hydra", **COMMON, "trainable_layers": 1},
    "lora": {"use": "lora", **COMMON, "rank": 4, "target_modules": ["q_proj", "v_proj"]},
    "lora half": {
        "use": "lora",
        **COMMON,
        "rank": 4,
        "dtype": "bfloat16",
        "target_modules": ["v_proj", "q_proj"],
    },
    "lora rank": {"use": "lora", **COMMON, "rank": 2, "target_modules": ["q_proj", "v_proj"]},
    "lora alpha": {
        "use": "lora",
        **COMMON,
        "rank": 4,
        "alpha": 8,
        "target_modules": ["q_proj", "v_proj"],
    },
    "lora modules": {"use": "lora", **COMMON, "rank": 4, "target_modules": ["q_proj"]},
}


def recipe_of(folder: Path, model: Path, memory: str, own: str | None) -> Path:
    path = write_toy_recipe(folder, model, "full")
    values = yaml.safe_load(path.read_text())
    values["memory"] = BLOCKS[memory]
    if own is not None:
        values["stages"]["reward_model"]["memory"] = BLOCKS[own]
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.fixture(scope="session")
def saved(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """What an SFT stage with this memory block leaves."""
    made: dict[str, Path] = {}

    def folder(memory: str) -> Path:
        if memory not in made:
            base = tmp_path_factory.mktemp("saved")
            recipe, _, _ = open_recipe(recipe_of(base / "project", toy_model, memory, None))
            made[memory] = finished_stage(base / "sft", "policy")
            context = StageContext(RunContext(recipe, base / "run"), "sft")
            context.memory().policy(None).save(made[memory])
        return made[memory]

    return folder


def loads(folder: Path, recipe: Any, tmp_path: Path) -> bool:
    context = StageContext(RunContext(recipe, tmp_path / "run"), "sft")
    try:
        model = context.memory().scorer(folder)
        model.score(texts(context.tokenizer, *ANSWERS))
    except RecipeError:
        return False
    return True


@pytest.mark.parametrize("ours", BLOCKS)
def test_check_says_what_loading_does(
    saved: Callable[[str], Path], toy_model: Path, tmp_path: Path, ours: str
) -> None:
    """Every pair: an own block beside the recipe's, and a folder of another run."""
    plain, _, _ = open_recipe(recipe_of(tmp_path / "plain", toy_model, ours, None))
    for theirs in BLOCKS:
        can = loads(saved(theirs), plain, tmp_path)
        assert can is (ours.split(" half")[0] == theirs.split(" half")[0])
        path = recipe_of(tmp_path / "project", toy_model, theirs, ours)
        by_stage = refusal(path)
        path = recipe_of(tmp_path / "project", toy_model, ours, None)
        by_folder = refusal(path, f"reward_model.from={saved(theirs)}")
        assert (not by_stage) is can, by_stage
        assert (not by_folder) is can, by_folder
        for line in filter(None, (by_stage, by_folder)):
            assert "stages.reward_model.from: " in line
            assert "\n" not in line


def refusal(path: Path, *overrides: str) -> str:
    try:
        open_recipe(path, overrides)
    except RecipeError as error:
        return str(error)
    return ""


def test_the_message(toy_model: Path, tmp_path: Path) -> None:
    path = recipe_of(tmp_path, toy_model, "lora", "lora rank")
    with pytest.raises(RecipeError) as caught:
        open_recipe(path)
    lines = path.read_text().splitlines()
    block = next(i for i, line in enumerate(lines, 1) if line == "  reward_model:")
    number = next(i for i, line in enumerate(lines, 1) if i > block and "from: sft" in line)
    assert str(caught.value).endswith(
        f":{number}: stages.reward_model.from: sft trains another memory than this stage's own: "
        "rank 4, and here 2; give both the same memory block, or remove one of `from` and `memory`"
    )


@pytest.mark.parametrize(
    "override",
    [
        "ppo.from={}",
        "ppo.reference={}",
        "evaluate.baseline={}",
        "evaluate.candidates.ppo={}",
        "collect.from={}",
        "sft.from={}",
    ],
)
def test_every_reference_that_is_loaded(
    saved: Callable[[str], Path], toy_model: Path, tmp_path: Path, override: str
) -> None:
    path = recipe_of(tmp_path, toy_model, "hydra", None)
    found = refusal(path, override.format(saved("lora")))
    key = override.partition("=")[0]
    assert found.startswith(f"command line: stages.{key}: {saved('lora')}: was written with memory")
    assert "strategy 'lora', the recipe has 'hydra'" in found
    assert refusal(path, override.format(saved("hydra half"))) == ""


def test_what_is_loaded_into_its_own_memory_may_differ(toy_model: Path, tmp_path: Path) -> None:
    """The reward of PPO and its critic are on the backbone that trained them."""
    path = recipe_of(tmp_path / "project", toy_model, "hydra", "lora")
    values = yaml.safe_load(path.read_text())
    del values["stages"]["reward_model"]["from"]
    values["stages"]["ppo"] |= {
        "critic": {"value": {"use": "separate", "from": "reward_model"}},
        "steps": 1,
    }
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    resolved, loaded, _ = open_recipe(path)
    run_recipe(resolved, loaded, out=tmp_path / "run", plain=True)
    # In another recipe its folder is loaded with that recipe's memory.
    folder = tmp_path / "run/stages/reward_model"
    assert json.loads((folder / "memory.json").read_text())["strategy"] == "lora"
    other = one_stage(tmp_path / "other", toy_model, "ppo", "hydra")
    for key in ("reward", "critic.value"):
        use = {"reward": "reward_model", "critic.value": "separate"}[key]
        found = refusal(other, f"ppo.{key}={{use: {use}, from: {folder}}}")
        assert f"stages.ppo.{key}.from: {folder}: was written with memory strategy" in found


def test_a_folder_without_weights(toy_model: Path, tmp_path: Path) -> None:
    path = recipe_of(tmp_path / "project", toy_model, "full", None)
    folder = finished_stage(tmp_path / "empty", "policy")
    assert "holds no trained weights" in refusal(path, f"ppo.from={folder}")


def test_a_critic_of_other_tokens_is_refused_before_anything_runs(
    toy_model: Path, tmp_path: Path
) -> None:
    """A brother: it was found when PPO began."""
    from test_own_model import write_other_model

    other = write_other_model(tmp_path / "other")
    path = recipe_of(tmp_path / "project", toy_model, "full", "full")
    values = yaml.safe_load(path.read_text())
    block = values["stages"]["reward_model"]
    del block["from"]
    block["model"] = {"use": "pretrained", "name": str(other)}
    critic = {"use": "separate", "from": "reward_model"}
    values["stages"]["ppo"]["critic"] = {"value": critic}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    resolved, _, _ = open_recipe(path)
    context = StageContext(RunContext(resolved, tmp_path / "run"), "ppo")
    chosen: Any = resolved.stages["ppo"].part.options
    with pytest.raises(RecipeError, match="whose tokenizer is not the policy's"):
        context.build(chosen.critic.value)

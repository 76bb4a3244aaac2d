"""Options of the built-in components that another option makes idle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_kit.components import Options
from rlhf_kit.errors import RecipeError
from rlhf_kit.recipe import open_recipe
from rlhf_kit.recipe.problems import known_keys
from rlhf_kit.recipe.walk import blocks_of, parts_of

MEMBER = "{use: python, path: reward.py}"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["reward_model.probe_l2=0.1"],
            'stages.reward_model.probe_l2: nothing reads it: head_init is "normal"; remove it, or '
            "set head_init: probe",
        ),
        (
            ["reward_model.head_init=probe", "reward_model.head_init_std=0"],
            'stages.reward_model.head_init_std: nothing reads it: head_init is "probe"',
        ),
        (
            ["ppo.optimizer.final_fraction=0.2"],
            'stages.ppo.optimizer.final_fraction: nothing reads it: schedule is "constant"',
        ),
        (
            [f"ppo.reward={{use: ensemble, std_coef: 2, rewards: {{a: {MEMBER}}}}}"],
            'stages.ppo.reward.std_coef: nothing reads it: combine is "mean"; remove it, or set '
            "combine: mean_minus_std",
        ),
        (
            ["ppo.end.value=2"],
            'stages.ppo.end.value: nothing reads it: missing is "keep"',
        ),
        (["ppo.kl.on_limit=stop"], "stages.ppo.kl.on_limit: nothing reads it: limit is null"),
        (
            ["ppo.kl.limit=3", "ppo.kl.rollback_factor=3"],
            'stages.ppo.kl.rollback_factor: nothing reads it: on_limit is "stop"',
        ),
        (
            ["ppo.gate.check=false", "ppo.gate.skip=[end]"],
            "stages.ppo.gate.skip: nothing reads it: check is false",
        ),
        (["model.revision=main"], "model.revision: nothing reads it: the model is a local folder"),
    ],
)
def test_refused(toy_recipe: Callable[..., Path], overrides: list[str], line: str) -> None:
    with pytest.raises(RecipeError) as caught:
        open_recipe(toy_recipe("full"), overrides)
    assert str(caught.value).startswith(f"command line: {line}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["reward_model.head_init=probe", "reward_model.probe_l2=0.1"],
        ["reward_model.head_init_std=0.1"],
        ["ppo.optimizer={learning_rate: 1, schedule: cosine, final_fraction: 0.2}"],
        [
            "ppo.reward={use: ensemble, combine: mean_minus_std, std_coef: 2, rewards: "
            f"{{a: {MEMBER}}}}}"
        ],
        ["ppo.end.missing=subtract", "ppo.end.value=2"],
        ["ppo.kl.limit=3", "ppo.kl.on_limit=rollback", "ppo.kl.rollback_factor=3"],
    ],
)
def test_accepted(toy_recipe: Callable[..., Path], overrides: list[str]) -> None:
    open_recipe(toy_recipe("full"), overrides)


def test_the_pretraining_mix_of_plain_ppo(toy_recipe: Callable[..., Path]) -> None:
    """One key says it, and takes along all that says how to mix; a coefficient of 0 does not."""
    path = toy_recipe("full")
    recipe, _, _ = open_recipe(path, ["ppo.ptx=null"])
    options: Any = recipe.stages["ppo"].part.options
    assert options.ptx is None
    with pytest.raises(RecipeError, match=r"ppo\.ptx\.coef: is 0; should be greater than 0"):
        open_recipe(path, ["ppo.ptx.coef=0"])


def test_idle_keys_are_keys(toy_recipe: Callable[..., Path]) -> None:
    """A misspelt one would refuse nothing."""
    recipe, _, _ = open_recipe(toy_recipe("full"))
    parts = [p for stage in recipe.stages.values() for p in parts_of(stage.part)]
    blocks = [block for p in (recipe.model, *parts) for _, block in blocks_of(p.options)]
    found = {type(block): block.idle().keys() for block in blocks if isinstance(block, Options)}
    for model, keys in found.items():
        assert keys <= set(known_keys(model)), model
    assert sum(map(len, found.values())) > 4

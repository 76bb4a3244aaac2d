"""How PPO's parts hang together: what a checkpoint holds, where a trunk rests, who reads the KL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rlhf_kit_policy_gradient.experience import Normalizers
from rlhf_kit_policy_gradient.parts import CriticPart, PPOParts, PtxPart
from toy_runs import metrics, one_stage, run

from rlhf_kit.engine.scoring import score
from rlhf_kit.errors import NumericsError, RecipeError
from rlhf_kit.recipe import open_recipe
from rlhf_kit.testing import made_up_samples

# Parts without which nothing is lost: what is frozen, shown, or told by the recipe.
WITHOUT_STATE = {"engine", "reference", "endings", "whole_groups", "groups_compared", "coef"}


class Remembers:
    """Anything that has state."""

    def __init__(self) -> None:
        self.coefficient = 0.0
        self.limit = self

    def __call__(self, *inputs: Any) -> Any:
        return None

    def attach(self, policy: Any) -> None:
        pass

    def parameters(self) -> Any:
        return ()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def test_a_checkpoint_holds_every_part_that_has_state() -> None:
    """Counted by the fields, so that a part added later cannot be forgotten."""

    def filled(kind: type) -> Any:
        inner = {"normalizers": Normalizers, "critic": CriticPart, "ptx": PtxPart}
        chosen = inner if kind is PPOParts else {}
        return kind(
            **{
                f.name: filled(chosen[f.name]) if f.name in chosen else Remembers()
                for f in fields(kind)
            }
        )

    parts = filled(PPOParts)
    counted = 0
    for kind in (PPOParts, CriticPart, PtxPart, Normalizers):
        names = {f.name for f in fields(kind)} - WITHOUT_STATE
        counted += len(names - {"normalizers", "critic", "ptx"})
    assert len(parts.state()) == counted
    found = {id(part) for part in parts.state().values()}
    assert len(found) == counted
    assert id(parts.policy_loss) in found and id(parts.sampler) in found


@pytest.mark.parametrize("critic", ["linear", "separate"])
def test_where_the_trunk_rests_changes_nothing(
    critic: str, toy_model: Path, tmp_path: Path
) -> None:
    """But rounding: what is computed again is computed in other batches."""
    recipe = one_stage(
        tmp_path / "project",
        toy_model,
        steps=2,
        critic={"value": critic},
        end={"score_at": "after_end"},
    )
    found = {}
    for trunk in ("keep", "host", "drop"):
        run(recipe, tmp_path / trunk, f"ppo.trunk={trunk}")
        rows = metrics(tmp_path / trunk)
        found[trunk] = [{k: v for k, v in row.items() if k != "stage"} for row in rows]
    assert found["host"] == found["keep"]
    for kept, dropped in zip(found["keep"], found["drop"], strict=True):
        assert dropped == pytest.approx(kept, rel=1e-3, abs=1e-4)


def declared(needs: str, seam: str, name: str, target: str) -> str:
    return f"""
import rlhf_kit

@rlhf_kit.hookimpl
def rlhf_components():
    yield rlhf_kit.Component(
        "{seam}", "{name}", "{target}", rlhf_kit.Options, needs=frozenset({{"{needs}"}})
    )
"""


@pytest.fixture
def strangers(tmp_path: Path) -> tuple[Path, ...]:
    """An estimator that reads scores, and a loss with a KL of its own."""
    target = "rlhf_kit_policy_gradient.gae:GAE"
    made = {
        "reads": declared("scores", "advantage", "reads", target),
        "brings": declared("own_kl", "policy_loss", "brings", target),
    }
    for name, text in made.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tuple(tmp_path / f"{name}.py" for name in made)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["ppo.advantage=reads"],
            r"kl\.coef: is 0\.02, and advantage 'reads' reads scores.*place: loss",
        ),
        (["ppo.advantage=reads", "ppo.policy_loss=brings"], r"'brings' has a KL .*paid twice"),
        (["ppo.policy_loss=brings", "ppo.kl.place=loss"], r"'brings' has a KL .*paid twice"),
        (["ppo.policy_loss=brings"], r"kl\.coef: is 0\.02, and policy_loss 'brings' has a KL"),
        (
            ["ppo.advantage=reads", "ppo.kl.coef=0", "ppo.normalize.rewards=whiten"],
            r"normalize\.rewards: nothing reads it: advantage 'reads' reads scores",
        ),
        (
            ["ppo.advantage=reads", "ppo.kl.coef=0", "ppo.end.score_at=after_end"],
            r"end\.score_at: nothing reads it: advantage 'reads' reads scores",
        ),
    ],
)
def test_a_kl_that_nobody_reads_or_that_is_paid_twice(
    overrides: list[str], says: str, toy_recipe: Callable[..., Path], strangers: tuple[Path, ...]
) -> None:
    path = toy_recipe("full", ppo={"critic": {}})
    with pytest.raises(RecipeError, match=says):
        open_recipe(path, overrides, strangers)


def test_a_kl_that_is_read(toy_recipe: Callable[..., Path], strangers: tuple[Path, ...]) -> None:
    path = toy_recipe("full", ppo={"critic": {}})
    open_recipe(path, ["ppo.policy_loss=brings", "ppo.kl.coef=0"], strangers)


def test_scores_of_tokens_and_of_responses_do_not_mix() -> None:
    from rlhf_kit_rewards.composite import Composite

    class Sum(Composite):
        def combine(self, components: Any) -> Any:
            return self.stacked(components).sum(0)

    made: dict[str, Any] = {
        "steps": lambda samples: samples.response_mask.float(),
        "whole": lambda samples: samples.response_mask.float().sum(1),
    }
    reward = Sum({name: name for name in made}, SimpleNamespace(build=made.get))  # type: ignore
    with pytest.raises(NumericsError, match=r"steps scores tokens, whole responses"):
        score(reward, made_up_samples())

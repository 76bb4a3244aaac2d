"""Rewards made of rewards: what an ensemble believes, and state that survives a stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from toy_runs import metrics, one_stage, run, run_in_two, summary
from toys import write_toy_recipe

from rlhf_kit.components import Component, Part
from rlhf_kit.plugins import load_plugins
from rlhf_kit.recipe import open_recipe
from rlhf_kit.registry import Registry
from rlhf_kit.testing import build, check_reward, made_up_samples, part

_REGISTRY = Registry(load_plugins())


def of(seam: str, name: str) -> Component:
    return _REGISTRY.find(seam, f"rlhf-kit/{name}", "test", "test")[0]


MEMBERS = """
def low(samples):
    return [1.0, 2.0]

def middle(samples):
    return [3.0, 2.0]

def high(samples):
    return [8.0, 2.0]
"""


@pytest.fixture
def members(tmp_path: Path) -> dict[str, Part]:
    (tmp_path / "members.py").write_text(MEMBERS)
    python = of("reward", "python")
    return {
        name: part(python, path=tmp_path / "members.py", function=name)
        for name in ("low", "middle", "high")
    }


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ({}, 4.0),
        ({"combine": "min"}, 1.0),
        # Deviations from 4 are -3, -1 and 4; their mean square is 26/3.
        ({"combine": "mean_minus_std"}, 4.0 - (26 / 3) ** 0.5),
        ({"combine": "mean_minus_std", "std_coef": 0.5}, 4.0 - 0.5 * (26 / 3) ** 0.5),
        ({"combine": "mean_minus_std", "std_coef": 0.0}, 4.0),
    ],
)
def test_ensemble(members: dict[str, Part], options: dict[str, Any], first: float) -> None:
    """Where the members agree, all three say what they say."""
    ensemble = build(of("reward", "ensemble"), rewards=members, **options)
    samples = made_up_samples(["one", "two"])
    components = ensemble.components(samples)
    assert {name: value.tolist() for name, value in components.items()} == {
        "low": [1.0, 2.0],
        "middle": [3.0, 2.0],
        "high": [8.0, 2.0],
    }
    assert ensemble(samples).tolist() == pytest.approx([first, 2.0])
    assert ensemble.parts.keys() == members.keys()
    assert not ensemble.needs_models


def test_an_ensemble_is_a_reward(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "def length(responses):\n    return [len(r) for r in responses]\n"
        "def ends(samples):\n    return samples.finished.float()\n"
    )
    python = of("reward", "python")
    inner = {name: part(python, path=path, function=name) for name in ("length", "ends")}
    for combine in ("mean", "min", "mean_minus_std"):
        check_reward(build(of("reward", "ensemble"), rewards=inner, combine=combine))


def test_a_single_member_has_no_deviation(members: dict[str, Part]) -> None:
    one = {"low": members["low"]}
    ensemble = build(of("reward", "ensemble"), rewards=one, combine="mean_minus_std")
    assert ensemble(made_up_samples(["one", "two"])).tolist() == [1.0, 2.0]


COUNTING = """
import rlhf_kit, torch

class Counting:
    \"\"\"Grows with every response that it has scored: a reward with state.\"\"\"

    def __init__(self, options):
        self.seen = 0

    def __call__(self, samples):
        begin = self.seen
        self.seen += len(samples)
        return torch.arange(begin, self.seen).float() / 100

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]

@rlhf_kit.hookimpl
def rlhf_components():
    target = __name__ + ":Counting"
    return [rlhf_kit.Component("reward", "counting", target, summary="Counts.")]
"""


def nested() -> dict[str, Any]:
    counting = {"use": "counting"}
    return {
        "use": "weighted_sum",
        "rewards": {
            "text": {"use": "python", "path": "reward.py"},
            "both": {"use": "ensemble", "rewards": {"a": counting, "b": counting}},
        },
    }


def test_state_goes_through_everything_that_holds_a_reward(tmp_path: Path) -> None:
    (tmp_path / "counting.py").write_text(COUNTING)
    loaded = load_plugins([tmp_path / "counting.py"])
    counting = part(Registry(loaded).find("reward", "counting", "test", "test")[0])
    both = part(of("reward", "ensemble"), rewards={"a": counting, "b": counting})
    whole = part(of("reward", "weighted_sum"), rewards={"both": both})
    labeler = build(of("labeler", "scripted"), reward=whole)
    samples = made_up_samples(["one", "two", "three"])
    labeler(samples)
    state = labeler.state_dict()
    assert state == {"both": {"a": {"seen": 3}, "b": {"seen": 3}}}
    other = build(of("labeler", "scripted"), reward=whole)
    other.load_state_dict(state)
    assert other(samples) == labeler(samples)


def test_nothing_to_save_is_fine(members: dict[str, Part]) -> None:
    labeler = build(of("labeler", "scripted"), reward=members["low"])
    assert labeler.state_dict() == {}
    labeler.load_state_dict({})


def test_a_stateful_reward_survives_an_interrupted_run(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A reward that grows with every call is not what the gate of PPO calls repeatable.
    recipe = one_stage(
        tmp_path / "project", toy_model, reward=None, ptx=None, gate={"check": False}, steps=4
    )
    (tmp_path / "project/counting.py").write_text(COUNTING)
    values = yaml.safe_load(recipe.read_text())
    values["plugins"] = ["./counting.py"]
    values["stages"]["ppo"]["reward"] = nested()
    recipe.write_text(yaml.safe_dump(values, sort_keys=False))
    run(recipe, tmp_path / "whole")
    run_in_two(recipe, tmp_path / "part", 2, monkeypatch)
    assert metrics(tmp_path / "part") == metrics(tmp_path / "whole")
    assert summary(tmp_path / "part") == summary(tmp_path / "whole")
    counted = [row["score/both"] for row in metrics(tmp_path / "whole")]
    assert counted == sorted(counted)
    assert counted[-1] > counted[0] + 0.1


def test_a_stateful_labeler_survives_an_interrupted_run(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_toy_recipe(tmp_path / "project", toy_model, "full")
    (tmp_path / "project/counting.py").write_text(COUNTING)
    values = yaml.safe_load(recipe.read_text())
    values["plugins"] = ["./counting.py"]
    values["data"] = {"prompts": values["data"]["prompts"]}
    collect = {k: v for k, v in values["stages"]["collect"].items() if k != "from"}
    collect["labeler"] = {"use": "scripted", "reward": nested()}
    collect["sampling"] = {"max_new_tokens": 4, "batch_size": 6}
    values["stages"] = {"collect": collect}
    recipe.write_text(yaml.safe_dump(values, sort_keys=False))
    whole = run(recipe, tmp_path / "whole") / "comparisons.jsonl"
    # A step is a prompt, and a batch two of them: stopped at the end of the second batch.
    part_of = run_in_two(recipe, tmp_path / "part", 3, monkeypatch) / "comparisons.jsonl"
    assert part_of.read_text() == whole.read_text()


def test_an_ensemble_in_a_recipe(toy_model: Path, tmp_path: Path) -> None:
    recipe = one_stage(tmp_path / "project", toy_model)
    member = "{use: python, path: reward.py}"
    reward = f"{{use: ensemble, combine: min, rewards: {{a: {member}, b: {member}}}}}"
    resolved, _, _ = open_recipe(recipe, [f"ppo.reward={reward}"])
    options: Any = resolved.stages["ppo"].part.options
    assert options.reward.options.combine == "min"
    assert options.reward.options.std_coef == 1.0

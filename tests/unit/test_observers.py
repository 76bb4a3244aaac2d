"""Observers: built from the recipe, guarded one by one, and without any say in a result."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file
from toy_runs import interrupted, metrics, one_stage, run
from watchers import write_watcher

from rlhf_kit.cli.main import main
from rlhf_kit.engine.observing import Observers
from rlhf_kit.errors import PluginError, RecipeError
from rlhf_kit.interfaces import Observer
from rlhf_kit.recipe import dump_yaml, open_recipe
from rlhf_kit.testing import check_plugin

ALL = """
def __init__(self, options, context):
    self.context = context

def note(self, *what):
    import json
    with (self.context.folder / "events.jsonl").open("a") as file:
        file.write(json.dumps(what) + "\\n")

def run_started(self, folder, recipe):
    self.note("run_started", folder.name, recipe.name)

def run_ended(self, folder, error):
    self.note("run_ended", folder.name, type(error).__name__)

def stage_started(self, stage, folder):
    self.note("stage_started", stage, folder.name)

def stage_ended(self, stage, folder, summary):
    self.note("stage_ended", stage, "steps" in summary)

def rollout_collected(self, stage, step, rollout):
    self.note("rollout_collected", stage, step, len(rollout.samples))

def step_ended(self, stage, step, metrics):
    self.note("step_ended", stage, step, "kl" in metrics)
    metrics.clear()

def checkpoint_saved(self, stage, step, path):
    self.note("checkpoint_saved", stage, step, path.name)
"""


def events(out: Path, name: str) -> list[list[Any]]:
    lines = (out / "observers" / name / "events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_every_event_comes_in_its_order(toy_model: Path, tmp_path: Path) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, steps=2)
    watched = write_watcher(tmp_path / "all.py", ALL)
    run(recipe, tmp_path / "run", watched, plugins=(tmp_path / "all.py",))
    assert events(tmp_path / "run", "all") == [
        ["run_started", "run", "toy"],
        ["stage_started", "ppo", "ppo"],
        ["rollout_collected", "ppo", 0, 8],
        ["step_ended", "ppo", 0, True],
        ["rollout_collected", "ppo", 1, 8],
        ["step_ended", "ppo", 1, True],
        ["checkpoint_saved", "ppo", 1, "00000002.pt"],
        ["stage_ended", "ppo", True],
        ["run_ended", "run", "NoneType"],
    ]
    assert len(metrics(tmp_path / "run")) == 2  # what an observer does to its copy is its own


def test_checkpoints_and_the_end_by_an_error_are_told(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, steps=3)
    write_watcher(tmp_path / "all.py", ALL)
    values = yaml.safe_load(recipe.read_text())
    values |= {"plugins": [str(tmp_path / "all.py")], "observers": {"mine": "all"}}
    recipe.write_text(yaml.safe_dump(values))
    interrupted(recipe, tmp_path / "run", 1, monkeypatch)
    found = events(tmp_path / "run", "mine")
    assert ["checkpoint_saved", "ppo", 0, "00000001.pt"] in found
    assert found[-1] == ["run_ended", "run", "KeyboardInterrupt"]


def test_one_that_fails_is_named_once_and_the_others_go_on(
    toy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, steps=2)
    broken = "".join(
        f"def {name}(self, *arguments):\n    raise OSError('no route to host')\n"
        for name in ("run_started", "stage_started", "step_ended", "stage_ended", "run_ended")
    )
    first = write_watcher(tmp_path / "broken.py", broken)
    second = write_watcher(tmp_path / "all.py", ALL)
    plugins = (tmp_path / "broken.py", tmp_path / "all.py")
    run(recipe, tmp_path / "run", first, second, plugins=plugins)
    shown = capsys.readouterr().err
    assert (
        shown.count("observer 'broken' of package 'broken' failed: OSError: no route to host") == 1
    )
    assert len(events(tmp_path / "run", "all")) == 9
    assert not (tmp_path / "run/observers/broken").exists()  # it never asked for its folder


def test_what_an_observer_draws_is_put_back() -> None:
    class Drawing(Observer):
        def run_ended(self, folder: Path, error: BaseException | None) -> None:
            torch.rand(3), numpy.random.rand(3), random.random()
            raise ValueError

    def draw() -> list[float]:
        return [torch.rand(1).item(), numpy.random.rand(), random.random()]

    def seed() -> None:
        torch.manual_seed(1), numpy.random.seed(1), random.seed(1)

    seed()
    expected = draw()
    seed()
    said: list[str] = []
    Observers({"drawing": Drawing()}, said.append).run_ended(Path(), None)
    assert draw() == expected
    (line,) = said
    assert line.startswith("warning: observer 'drawing' failed: ValueError (test_observers.py:")
    assert line.endswith(" (said once)")


def test_observers_change_no_result_and_no_fingerprint(
    toy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, steps=2)
    run(recipe, tmp_path / "run")
    run(recipe, tmp_path / "watched", "observers.samples.use=samples")
    one, other = (
        load_file(tmp_path / name / "stages/ppo/branch.safetensors") for name in ("run", "watched")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "watched")
    for changes in (
        ["observers.samples.use=samples"],  # added
        ["observers.samples={use: samples, every: 1}"],  # changed
        [],  # removed
    ):
        capsys.readouterr()
        run(recipe, tmp_path / "run", *changes)
        assert "[ppo] finished already" in capsys.readouterr().err


# -- the recipe


def test_a_wrong_observer_is_refused_at_its_line(toy_model: Path, tmp_path: Path) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, steps=1)
    text = recipe.read_text()
    wrong = "observers:\n  mine: sampels\n  other:\n    use: samples\n    evry: 2\n"
    recipe.write_text(text + wrong)
    line = len(text.splitlines()) + 2
    with pytest.raises(RecipeError) as caught:
        open_recipe(recipe)
    said = str(caught.value)
    assert f"toy.yaml:{line}: observers.mine: no observer is called 'sampels'" in said
    assert f"toy.yaml:{line + 3}: observers.other.evry" in said
    assert "every" in said


def test_an_observer_that_cannot_be_built_is_refused_before_the_run(
    toy_model: Path, tmp_path: Path
) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, steps=1)
    watched = write_watcher(
        tmp_path / "cannot.py", "def __init__(self, options):\n    raise OSError('no token')\n"
    )
    with pytest.raises(PluginError, match=r"observers\.cannot.*built: OSError: no token"):
        run(recipe, tmp_path / "run", watched, plugins=(tmp_path / "cannot.py",))
    assert not (tmp_path / "run").exists()


def test_a_filled_recipe_has_them_and_check_shows_them(toy_model: Path, tmp_path: Path) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, steps=1)
    change = "observers={talk: {use: samples, every: 2}}"
    resolved, _, _ = open_recipe(recipe, [change])
    filled = yaml.safe_load(dump_yaml(resolved))
    assert filled["observers"] == {"talk": {"use": "samples", "every": 2, "count": 8}}
    shown = CliRunner().invoke(main, ["check", str(recipe), change])
    assert "  observer  talk: samples" in shown.output


# -- the built-in


def rows(out: Path, name: str = "samples") -> list[dict[str, Any]]:
    text = (out / "observers" / name / "samples.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_samples_writes_some_of_some_rollouts(
    toy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reward = "def reward(responses):\n    return [float(len(text)) for text in responses]\n"
    recipe = one_stage(tmp_path / "project", toy_model, steps=3, reward=reward)
    run(recipe, tmp_path / "run", "observers={talk: {use: samples, every: 2, count: 3}}")
    found = rows(tmp_path / "run", "talk")
    assert [(row["stage"], row["step"]) for row in found] == [("ppo", 0)] * 3 + [("ppo", 2)] * 3
    prompts = [json.loads(x) for x in (recipe.parent / "prompts.jsonl").read_text().splitlines()]
    for row in found:
        assert row["prompt"] in {prompt["prompt"] for prompt in prompts}
        assert row["score"] == len(row["response"])
        assert isinstance(row["finished"], bool)
    assert "talk" not in capsys.readouterr().err


def test_samples_of_repeated_steps_are_written_once(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, steps=4)
    recipe.write_text(recipe.read_text() + "observers:\n  samples: {use: samples, every: 1}\n")
    run(recipe, tmp_path / "whole")
    interrupted(recipe, tmp_path / "parts", 2, monkeypatch)  # the third step will come again
    run(recipe, tmp_path / "parts")
    kept = [
        [{k: v for k, v in row.items() if k != "time"} for row in rows(tmp_path / name)]
        for name in ("whole", "parts")
    ]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 4 * 8


def test_the_plugin_conforms() -> None:
    (component,) = check_plugin("rlhf_kit_observers.plugin")
    fields = component.options.model_fields
    assert all(component.options().effect(name) == "observation" for name in fields)

"""The engine of a recipe: a block with a default, which every stage trains with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_runs import one_stage, run

from rlhf_kit.context import RunContext, StageContext
from rlhf_kit.engine.accumulate import accumulating
from rlhf_kit.engine.optim import Optimizer
from rlhf_kit.errors import PluginError, RecipeError
from rlhf_kit.interfaces import ParameterGroup, Term
from rlhf_kit.recipe import filled, open_recipe
from rlhf_kit.types import LossOutput

# An engine of a plugin, which writes down what is asked of it.
COUNTING = """
from pathlib import Path
from pydantic import Field
import rlhf_kit
from rlhf_kit import Component, Execution, Options

class Counted(Options):
    ranks: int = Field(1, ge=1, description="identity")
    bucket: Execution[int] = Field(1, description="rounding at most")
    fails: bool = Field(False, description="cannot be built")

def note(what):
    with Path(__file__).with_name("asked.txt").open("a") as file:
        file.write(what + "\\n")

class Counting:
    def __init__(self, options):
        from rlhf_kit_engines.options import SingleOptions
        from rlhf_kit_engines.single import Single
        if options.fails:
            raise OSError("no such network")
        self._inner = Single(SingleOptions())
        self.world = self._inner.world
        note("made")

    def optimizer(self, groups, options, total_steps):
        note("optimizer")
        return self._inner.optimizer(groups, options, total_steps)

    def step(self, optimizer, watch=()):
        note("step")
        return self._inner.step(optimizer, watch)

@rlhf_kit.hookimpl
def rlhf_components():
    yield Component("engine", "counting", "counting:Counting", Counted, "counts")
"""


@pytest.fixture
def with_counting(toy_recipe: Callable[..., Path]) -> Path:
    path = toy_recipe("full")
    (path.parent / "counting.py").write_text(COUNTING)
    path.write_text("plugins: [counting.py]\nengine: counting\n" + path.read_text())
    return path


def asked(recipe: Path) -> list[str]:
    return (recipe.parent / "asked.txt").read_text().splitlines()


def test_nothing_written(toy_recipe: Callable[..., Path]) -> None:
    recipe, _, _ = open_recipe(toy_recipe("full"))
    assert (recipe.engine.component.name, recipe.engine.key) == ("single", "engine")
    assert filled(recipe)["engine"] == {"use": "single"}


def test_written(with_counting: Path) -> None:
    recipe, _, _ = open_recipe(with_counting, ["engine.ranks=2"])
    assert recipe.engine.where == "command line" or recipe.engine.where.endswith(":2")
    assert filled(recipe)["engine"] == {
        "use": "counting",
        "ranks": 2,
        "bucket": 1,
        "fails": False,
    }


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("engine=singel", "engine: no engine is called 'singel'; did you mean 'single'?"),
        ("engine.ranks=2", "engine.ranks: unknown key; known: none"),
        ("engine=null", "engine: is null; should be a component's name"),
        ("engine=hydra", "engine: no engine is called 'hydra'"),
    ],
)
def test_refused(toy_recipe: Callable[..., Path], override: str, line: str) -> None:
    with pytest.raises(RecipeError) as caught:
        open_recipe(toy_recipe("full"), [override])
    assert str(caught.value).startswith(f"command line: {line}")


def fingerprints(path: Path, folder: Path, *overrides: str) -> dict[str, Any]:
    recipe, _, _ = open_recipe(path, overrides)
    return {id: record.depends for id, record in RunContext(recipe, folder).records().items()}


def test_what_a_result_depends_on(with_counting: Path, tmp_path: Path) -> None:
    first = fingerprints(with_counting, tmp_path)
    assert fingerprints(with_counting, tmp_path, "engine.bucket=9") == first
    for override in ("engine.ranks=2", "engine=single"):
        other = fingerprints(with_counting, tmp_path, override)
        for id, depends in first.items():
            changed = {what for what in depends if depends[what] != other[id][what]}
            assert changed <= {"the engine", "a stage before it"} and "the engine" in changed


def test_one_for_all_stages_and_before_the_memory(with_counting: Path, tmp_path: Path) -> None:
    recipe, _, _ = open_recipe(with_counting)
    context = RunContext(recipe, tmp_path)
    context.records()
    assert not (with_counting.parent / "asked.txt").exists()  # who only looks at a run starts none
    StageContext(context, "sft").memory()
    assert asked(with_counting) == ["made"]
    assert StageContext(context, "ppo").engine is StageContext(context, "sft").engine
    assert asked(with_counting) == ["made"]
    recipe, _, _ = open_recipe(with_counting, ["engine.fails=true"])
    with pytest.raises(PluginError, match=r"engine: .* could not be built: OSError: no such net"):
        StageContext(RunContext(recipe, tmp_path), "sft").memory()


@pytest.mark.parametrize("id", ["sft", "ppo"])
def test_every_stage_trains_with_it(toy_model: Path, tmp_path: Path, id: str) -> None:
    """And with another engine that does the same the weights are the same, bit by bit."""
    recipe = one_stage(tmp_path / "project", toy_model, id)
    (recipe.parent / "counting.py").write_text(COUNTING)
    plain = run(recipe, tmp_path / "plain")
    recipe.write_text("plugins: [counting.py]\n" + recipe.read_text())
    counted = run(recipe, tmp_path / "counted", "engine={use: counting, bucket: 3}")
    first, second, *rest = asked(recipe)
    assert (first, second) == ("made", "optimizer") and set(rest) == {"step"}
    weights = [path.name for path in plain.glob("*.safetensors")]
    assert weights
    for name in weights:
        assert (plain / name).read_bytes() == (counted / name).read_bytes()
    manifest = json.loads((tmp_path / "counted/manifest.json").read_text())
    assert manifest["attempts"][0]["execution"][id]["engine.bucket"] == 3


def test_all_three_that_train(with_counting: Path, tmp_path: Path) -> None:
    run(with_counting, tmp_path / "out")
    found = asked(with_counting)
    assert (found.count("made"), found.count("optimizer")) == (1, 3)  # sft, reward_model, ppo


class Total:
    """Sums what it is given."""

    def count(self, masks: Any) -> torch.Tensor:
        return torch.tensor(float(len(masks)))

    def __call__(self, inputs: torch.Tensor) -> LossOutput:
        return LossOutput(inputs.sum())


class Three:
    """A world in which two other ranks hold as much as this one."""

    rank, size = 0, 3

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * x


def test_counts_are_of_all_ranks() -> None:
    gradients = []
    for world in ((), (Three(),)):
        weight = torch.nn.Parameter(torch.ones(()))
        optimizer = Optimizer([ParameterGroup([weight], 0.0)], max_gradient_norm=None)
        with accumulating(optimizer, (), *world) as step:
            inputs = {"x": weight * torch.full((4,), 6.0)}
            step.add(
                {"x": Term(Total(), lambda values: values)},
                lambda _, inputs=inputs: inputs,
                [torch.ones(4)],
            )
            gradients += [gradient.item() for gradient in optimizer.gradients([weight])]
    assert gradients == [6.0, 2.0]

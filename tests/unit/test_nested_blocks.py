"""Blocks inside a stage's block, with slots and references of their own, at any depth."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from nested_options import Block, Outer
from pydantic import Field
from toy_plugins import RECIPE, TOY, load_toys, resolved, write_distribution

from rlhf_kit import Component, Options, StageRef, block
from rlhf_kit.cli.option_rows import option_rows
from rlhf_kit.content import Contents
from rlhf_kit.errors import PluginError, RecipeError
from rlhf_kit.plugins import LoadedPlugins
from rlhf_kit.recipe import Recipe, filled, plain, refs_of
from rlhf_kit.recipe.agreement import loaded_refs
from rlhf_kit.recipe.identity import execution, identity
from rlhf_kit.recipe.walk import parts_of
from rlhf_kit.testing import check_component, hollow_part, part

NESTED = """
from __future__ import annotations
from typing import Literal
from pydantic import Field
from rlhf_kit import (
    Component, Execution, Options, Part, StageRef, block, hookimpl, slot, slots, stage_ref
)

class Fixed(Options):
    pass

class Adaptive(Options):
    target: float = Field(6.0, gt=0, description="nats")
    horizon: int = Field(100, ge=1, description="episodes")

class Limit(Options):
    most: float | None = Field(None, description="nats; null: none")
    then: Literal["stop", "back"] = Field("stop", description="what happens")
    controller: Part = slot("controller", use="fixed", description="of the limit")

    def idle(self):
        return {"then": "most is null; set one"} if self.most is None else {}

    def problems(self):
        return {"most": "is 13; another one"} if self.most == 13 else {}

class KL(Options):
    coef: float = Field(0.02, ge=0, description="beta")
    names: list[str] = Field([], description="words")
    micro: Execution[int] = Field(8, description="rows at once")
    controller: Part = slot("controller", use="fixed", description="what becomes of beta")
    limit: Limit = block(description="a bound")

class Ptx(Options):
    text: Part = slot("data", use="demos", description="running text")
    loss: Part = slot("loss", use="nll", description="its loss")
    start: StageRef | None = stage_ref(
        "policy", alias="from", default=None, loads_into="own", description="of the mix"
    )

class Mix(Options):
    rewards: dict[str, Part] = slots("loss", description="several")

class Step(Options):
    kl: KL = block(description="the KL penalty")
    steered: KL = block(
        {"coef": 0.1, "controller": {"use": "adaptive", "target": 3.0}, "limit": {"most": 9.0}},
        description="another, that is steered",
    )
    ptx: Ptx | None = block(None, description="the pretraining mix; null: none")
    mix: Mix | None = block(None, description="null: none")

    def problems(self):
        found = {}
        if self.kl.coef > self.steered.coef:
            found["kl.coef"] = f"{self.kl.coef} is larger than that of steered"
        if self.kl.names == ["raise"]:
            raise KeyError("names")
        return found

@hookimpl
def rlhf_components():
    yield Component("stage", "step", f"{__name__}:Step", Step, "a step", "policy")
    yield Component("controller", "fixed", f"{__name__}:Options", Fixed, "stays")
    yield Component("controller", "adaptive", f"{__name__}:Options", Adaptive, "moves")
    yield Component("loss", "nll", f"{__name__}:Options", Options, "a loss")
"""

STEP = """\
  step:
    use: step
"""


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedPlugins:
    site = write_distribution(tmp_path / "site", "nested", nested_toy=TOY, nested_blocks=NESTED)
    monkeypatch.syspath_prepend(str(site))
    return load_toys(site)


def opened(plugins: LoadedPlugins, folder: Path, block: str = "", *overrides: str) -> Recipe:
    """The recipe whose last stage is a step with ``block`` in it."""
    path = folder / "recipe.yaml"
    path.write_text(RECIPE + STEP + block)
    return resolved(plugins, path, *overrides)


def step(plugins: LoadedPlugins, folder: Path, block: str = "", *overrides: str) -> Options:
    return opened(plugins, folder, block, *overrides).stages["step"].part.options


def refused(plugins: LoadedPlugins, folder: Path, block: str = "", *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        opened(plugins, folder, block, *overrides)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


LINE = len((RECIPE + STEP).splitlines())  # of the last line before what a test writes


def test_nothing_written(plugins: LoadedPlugins, tmp_path: Path) -> None:
    found = step(plugins, tmp_path)
    assert (found.kl.coef, found.kl.controller.component.name) == (0.02, "fixed")
    assert found.kl.limit.controller.component.name == "fixed"
    assert found.kl.controller.key == "stages.step.kl.controller"
    assert found.kl.limit.controller.key == "stages.step.kl.limit.controller"
    assert found.steered.coef == 0.1
    assert found.steered.controller.component.name == "adaptive"
    assert found.steered.controller.options.target == 3.0
    assert (found.steered.limit.most, found.steered.limit.then) == (9.0, "stop")
    assert found.ptx is None and found.mix is None


def test_partly_written(plugins: LoadedPlugins, tmp_path: Path) -> None:
    found = step(
        plugins,
        tmp_path,
        "    kl: {limit: {controller: {use: adaptive, target: 2}}}\n"
        "    steered: {coef: 0.3, controller: {horizon: 7}, limit: {then: back}}\n",
    )
    assert (found.kl.coef, found.kl.controller.component.name) == (0.02, "fixed")
    assert found.kl.limit.controller.options.target == 2.0
    # What is not written of a default stays, of its component too.
    assert (found.steered.coef, found.steered.limit.most) == (0.3, 9.0)
    options = found.steered.controller.options
    assert (options.target, options.horizon) == (3.0, 7)


def test_a_replaced_component_keeps_nothing(plugins: LoadedPlugins, tmp_path: Path) -> None:
    for text in ("adaptive", "{use: adaptive}"):
        found = step(plugins, tmp_path, f"    steered: {{controller: {text}}}\n")
        assert found.steered.controller.options.target == 6.0
    found = step(plugins, tmp_path, "    steered: {controller: fixed}\n")
    assert (found.steered.controller.component.name, found.steered.coef) == ("fixed", 0.1)


def test_an_optional_block(plugins: LoadedPlugins, tmp_path: Path) -> None:
    assert step(plugins, tmp_path, "    ptx: null\n").ptx is None
    for text in ("{}", "{loss: nll}", "{text: demos}"):
        found = step(plugins, tmp_path, f"    ptx: {text}\n").ptx
        assert (found.text.key, found.loss.key) == ("data.demos", "stages.step.ptx.loss")
    found = step(plugins, tmp_path, "    mix: {rewards: {a: nll, b: {use: nll}}}\n").mix
    assert [p.key for p in found.rewards.values()] == [
        "stages.step.mix.rewards.a",
        "stages.step.mix.rewards.b",
    ]


def test_overrides(plugins: LoadedPlugins, tmp_path: Path) -> None:
    found = step(
        plugins,
        tmp_path,
        "",
        "stages.step.kl.controller=adaptive",
        "step.kl.controller.target=4",
        "step.kl.coef=0.05",
        "step.kl.limit.most=3",
        "step.steered.controller.target=5",
        "step.ptx.from=sft",
    )
    assert (found.kl.coef, found.kl.controller.options.target) == (0.05, 4.0)
    assert found.kl.limit.most == 3.0
    assert found.steered.controller.options.target == 5.0
    assert found.ptx.start == StageRef(stage="sft")


@pytest.mark.parametrize(
    ("block", "line", "what"),
    [
        ("    kl:\n      coeff: 1\n", 2, "kl.coeff: unknown key; did you mean 'coef'?"),
        ("    kl:\n      coef: -1\n", 2, "kl.coef: is -1; should be greater than or equal to 0"),
        (
            "    kl:\n      controller: adaptve\n",
            2,
            "kl.controller: no controller is called 'adaptve'; did you mean 'adaptive'?",
        ),
        (
            "    kl:\n      controller:\n        use: adaptive\n        targt: 1\n",
            4,
            "kl.controller.targt: unknown key; did you mean 'target'?",
        ),
        (
            "    kl:\n      limit:\n        controller: {use: adaptive, target: 0}\n",
            3,
            "kl.limit.controller.target: is 0; should be greater than 0",
        ),
        (
            "    kl:\n      controller: null\n",
            2,
            "kl.controller: is null; should be the name of a controller",
        ),
        ("    kl: null\n", 1, "kl: is null; should be a block of options"),
        (
            "    kl:\n      limit:\n        then: back\n",
            3,
            "kl.limit.then: nothing reads it: most is null; remove it, or set one",
        ),
        ("    ptx:\n      from: sfd\n", 2, "ptx.from: 'sfd' names no stage; did you mean 'sft'?"),
        ("    ptx:\n      text: demo\n", 2, "ptx.text: 'demo' is no entry of data:; did you mean"),
        ("    mix: {}\n", 1, "mix.rewards: missing; several"),
        ("    ptx: nll\n", 1, "ptx: is 'nll'; should be a block of options"),
    ],
)
def test_problems(plugins: LoadedPlugins, tmp_path: Path, block: str, line: int, what: str) -> None:
    (found,) = refused(plugins, tmp_path, block)
    assert found.startswith(f"recipe.yaml:{LINE + line}: stages.step.{what}")


def test_all_problems_at_once(plugins: LoadedPlugins, tmp_path: Path) -> None:
    lines = refused(
        plugins,
        tmp_path,
        "    kl:\n      coeff: 1\n      controller: no\n      limit: {most: much}\n"
        "    ptx: {from: ppx}\n",
    )
    assert [line.split(": ")[1] for line in lines] == [
        "stages.step.kl.coeff",
        "stages.step.kl.controller",
        "stages.step.kl.limit.most",
        "stages.step.ptx.from",
    ]


def test_what_does_not_go_together(plugins: LoadedPlugins, tmp_path: Path) -> None:
    lines = refused(
        plugins,
        tmp_path,
        "    kl:\n      limit:\n        most: 13\n      coef: 0.4\n    steered: {coef: 0.3}\n",
    )
    assert lines == [
        f"recipe.yaml:{LINE + 3}: stages.step.kl.limit.most: is 13; another one",
        f"recipe.yaml:{LINE + 4}: stages.step.kl.coef: 0.4 is larger than that of steered",
    ]
    (line,) = refused(plugins, tmp_path, "", "step.kl.coef=0.2")
    assert line == "command line: stages.step.kl.coef: 0.2 is larger than that of steered"
    # What is wrong by itself comes first: the check would read a value that is not there.
    (line,) = refused(plugins, tmp_path, "", "step.kl.coef=0.2", "step.kl.micro=much")
    assert "stages.step.kl.micro" in line


def test_a_check_that_fails_is_the_plugins_fault(plugins: LoadedPlugins, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="the options of stage 'step' raised KeyError: 'names'"):
        opened(plugins, tmp_path, "    kl: {names: [raise]}\n")


FULL = """\
    kl: {coef: 0.05, controller: {use: adaptive, target: 2}, limit: {most: 4, then: back}}
    steered: {controller: fixed, coef: 0.7}
    ptx: {from: sft, loss: nll}
    mix: {rewards: {a: nll}}
"""


@pytest.mark.parametrize("block", ["", FULL])
def test_what_is_written_back_resolves_to_the_same(
    plugins: LoadedPlugins, tmp_path: Path, block: str
) -> None:
    recipe = opened(plugins, tmp_path, block)
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(filled(recipe), sort_keys=False))
    other = resolved(plugins, again)
    assert filled(other) == filled(recipe)
    assert plain(other.stages["step"].part) == plain(recipe.stages["step"].part)


def test_walked(plugins: LoadedPlugins, tmp_path: Path) -> None:
    stage = opened(plugins, tmp_path, FULL).stages["step"]
    assert {p.key for p in parts_of(stage.part)} >= {
        "stages.step.kl.controller",
        "stages.step.kl.limit.controller",
        "stages.step.ptx.loss",
        "stages.step.mix.rewards.a",
        "data.demos",
    }
    assert refs_of(stage.part) == [StageRef(stage="sft")]
    assert stage.needs == ["sft"]
    (loaded,) = loaded_refs(stage)
    assert (loaded.place, loaded.own) == (("stages", "step", "ptx", "from"), True)


def test_identity(plugins: LoadedPlugins, tmp_path: Path) -> None:
    def of(*overrides: str) -> object:
        return identity(opened(plugins, tmp_path, "", *overrides).stages["step"].part, Contents())

    assert of() == of("step.kl.micro=3") == of("step.kl.controller=fixed")
    changes = ["kl.coef=0.01", "kl.controller=adaptive", "kl.limit.most=1", "ptx.loss=nll"]
    assert len({str(of(f"step.{change}")) for change in changes} | {str(of())}) == 5
    part = opened(plugins, tmp_path, "", "step.kl.micro=3").stages["step"].part
    assert execution(part) == {"kl.micro": 3, "steered.micro": 8}


OUTER = Component("controller", "outer", "nested_options:Thing", Outer, "for tests")
INNER = Component("controller", "inner", "nested_options:Thing", Options, "for tests")


def test_rows() -> None:
    rows = {row["key"]: row for row in option_rows(Outer)}
    assert [(key, row["type"], row["default"]) for key, row in rows.items()] == [
        ("kl", "block", ""),
        ("kl.controller", "controller", "adaptive"),
        ("kl.maybe", "controller", "fixed"),
        ("ptx", "block", "null"),
        ("ptx.controller", "controller", "fixed"),
        ("ptx.maybe", "controller", "fixed"),
    ]


def test_parts_in_python() -> None:
    """The slots of a block take parts; those that admit None are None unless given."""
    inner = part(INNER)
    found = part(OUTER, kl={"controller": inner}).options
    assert (found.kl.controller, found.kl.maybe, found.ptx) == (inner, None, None)
    found = part(OUTER, kl={"controller": inner}, ptx={"controller": inner}).options
    assert found.ptx.controller is inner
    hollow = hollow_part(OUTER, kl={"maybe": inner}).options
    assert hollow.kl.maybe is inner
    assert hollow.kl.controller.component.name == ""


def test_the_kit_reads_nested_blocks() -> None:
    check_component(OUTER)

    class Misspelt(Options):
        kl: Block = block({"controler": "adaptive"}, description="a block")

    class Silent(Options):
        inner: int = 3

    class Around(Options):
        silent: Silent = block(description="a block")

    class Many(Options):
        blocks: list[Block] = Field([], description="several")

    for options, what in (
        (Misspelt, "a default is not valid"),
        (Around, "silent: option 'inner' has no description"),
        (Many, "option 'blocks' holds blocks with slots"),
    ):
        wrong = Component("controller", "wrong", OUTER.target, options, "for tests")
        with pytest.raises(AssertionError, match=what):
            check_component(wrong)

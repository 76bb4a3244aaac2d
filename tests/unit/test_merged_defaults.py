"""A nested block keeps what it does not write; a replaced component keeps nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, Field
from rlhf_kit_instructgpt.options import SFTOptions
from rlhf_kit_policy_gradient.options import PPOPtxOptions
from toy_runs import ppo_options

from rlhf_kit import OptimizerOptions, Options
from rlhf_kit.cli.option_rows import option_rows
from rlhf_kit.errors import RecipeError
from rlhf_kit.option_fields import as_written, block_model, declared, key_of, over_defaults
from rlhf_kit.recipe import filled, open_recipe
from rlhf_kit.testing.stand_ins import stand_in


def stage(path: Path, name: str, *overrides: str) -> dict[str, Any]:
    recipe, _, _ = open_recipe(path, overrides)
    return dict(filled(recipe)["stages"][name])


def write_plain(path: Path) -> None:
    """The recipe without any optimizer block."""
    values = yaml.safe_load(path.read_text())
    for block in values["stages"].values():
        block.pop("optimizer", None)
    path.write_text(yaml.safe_dump(values, sort_keys=False))


@pytest.mark.parametrize("written", ["override", "yaml"])
def test_one_key_leaves_the_others(toy_recipe: Callable[..., Path], written: str) -> None:
    path = toy_recipe("full")
    write_plain(path)
    keys = {"sft": "stages.sft", "reward_model": "stages.reward_model", "ppo": "stages.ppo"}
    overrides = [f"{key}.optimizer.learning_rate=1e-3" for key in keys.values()]
    if written == "yaml":
        values = yaml.safe_load(path.read_text())
        for name in keys:
            values["stages"][name]["optimizer"] = {"learning_rate": 1e-3}
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        overrides = []
    else:
        assert stage(path, "ppo")["optimizer"]["learning_rate"] == 5e-6
    for name in ("sft", "reward_model"):
        optimizer = stage(path, name, *overrides)["optimizer"]
        assert (optimizer["learning_rate"], optimizer["schedule"]) == (1e-3, "cosine")
        assert optimizer["final_fraction"] == 0.1
    optimizer = stage(path, "ppo", *overrides)["optimizer"]
    assert (optimizer["learning_rate"], optimizer["warmup_steps"]) == (1e-3, 80)
    assert optimizer["schedule"] == "constant"


def test_a_required_key_may_be_left_to_the_default(toy_recipe: Callable[..., Path]) -> None:
    path = toy_recipe("full")
    write_plain(path)
    optimizer = stage(path, "sft", "sft.optimizer.warmup_steps=3")["optimizer"]
    assert (optimizer["learning_rate"], optimizer["warmup_steps"]) == (1.04e-5, 3)


def test_in_python_too() -> None:
    """The kit and a plugin's tests build options without a recipe."""
    options: Any = ppo_options(optimizer={"learning_rate": 1e-3})
    assert (options.optimizer.learning_rate, options.optimizer.warmup_steps) == (1e-3, 80)
    # Its own default, where no field says otherwise.
    assert OptimizerOptions(learning_rate=1.0).schedule == "constant"


class Inner(Options):
    a: int = Field(1, description="a")
    b: int = Field(2, description="b")


class Middle(Options):
    c: int = Field(3, description="c")
    start: int = Field(7, alias="from", description="an alias")
    inner: Inner = Field(Inner(b=20), description="inner")


class Plain(BaseModel):
    d: int = 4
    inner: Inner = Inner(a=30)


class Other(Options):
    x: int = Field(description="of another kind")


class Outer(Options):
    middle: Middle = Field(Middle(c=33, inner=Inner(a=11)), description="two blocks deep")
    plain: Plain = Field(description="required, and no Options")
    factory: Inner = Field(default_factory=lambda: Inner(a=5), description="made each time")
    maybe: Inner | None = Field(Inner(a=6, b=6), description="may be null")
    nothing: Inner | None = Field(None, description="null to begin with")
    several: Inner | Other = Field(Inner(a=8), description="one of two kinds")
    many: list[Inner] = Field([Inner(a=9)], description="a list is replaced whole")


def test_at_any_depth() -> None:
    found = Outer(middle={"inner": {}}, plain={"inner": {"b": 0}}, factory={"b": 0})
    assert found.middle == Middle(c=33, inner=Inner(a=11, b=2))
    assert found.plain == Plain(d=4, inner=Inner(a=30, b=0))
    assert found.factory == Inner(a=5, b=0)
    assert Outer(plain={}).plain.inner == Inner(a=30)


def test_an_alias_or_a_name() -> None:
    for key in ("from", "start"):
        found = Outer(plain={}, middle={key: 1})
        assert (found.middle.start, found.middle.c) == (1, 33)


def test_null_and_other_kinds() -> None:
    found = Outer(plain={}, maybe={"b": 1}, nothing={"b": 1}, several={"x": 1}, many=[{"b": 3}])
    assert found.maybe == Inner(a=6, b=1)
    assert found.nothing == Inner(a=1, b=1)
    assert found.several == Other(x=1)
    assert found.many == [Inner(a=1, b=3)]
    assert Outer(plain={}, maybe=None).maybe is None
    given: dict[str, Any] = {"plain": {"inner": {"b": 1}}}
    Outer(**given)
    assert given == {"plain": {"inner": {"b": 1}}}  # what was passed is not written to


def test_writing_any_subset_of_the_defaults_changes_nothing() -> None:
    """For random subsets of the keys of every shipped block, with the default's own values.

    Slots are always written: what fills them otherwise is a recipe.
    """
    chance, blocks = random.Random(0), 0
    for model in (SFTOptions, PPOPtxOptions):
        for name, field in model.model_fields.items():
            kind = block_model(field)
            if kind is None or field.default is None:
                continue
            blocks += 1
            slots = [key_of(n, f) for n, f in kind.model_fields.items() if "seam" in declared(f)]
            default = kind(**over_defaults(kind, field.default, fill=stand_in))
            whole = as_written(default)
            assert whole is not None
            cut = type("Cut", (Options,), {"__annotations__": {name: kind}, name: field.default})
            for _ in range(20):
                keys = [key for key in whole if key in slots or chance.random() < 0.5]
                found = cut(**{name: {key: whole[key] for key in keys}})
                assert getattr(found, name) == default
    assert blocks == 9


def test_a_slot_keeps_its_component_and_a_replaced_one_keeps_nothing(
    toy_recipe: Callable[..., Path],
) -> None:
    path = toy_recipe("full")
    found = stage(path, "ppo", "ppo.policy_loss={clip_range: 0.1}", "ppo.advantage={lam: 0.5}")
    assert found["policy_loss"] == {"use": "ppo_clip", "clip_range": 0.1}
    assert found["advantage"] == {"use": "gae", "discount": 1.0, "lam": 0.5}
    found = stage(
        path,
        "ppo",
        "ppo.normalize.advantages={use: whiten, shift_mean: false}",
        "ppo.normalize.advantages.use=running",
    )
    assert found["normalize"]["advantages"] == {"use": "running", "shift_mean": True, "clip": None}


def test_what_nothing_reads_is_refused_only_where_it_is_written(
    toy_recipe: Callable[..., Path],
) -> None:
    """`schedule: constant` makes the default's `final_fraction` idle, which nobody wrote."""
    path = toy_recipe("full")
    write_plain(path)
    optimizer = stage(path, "sft", "sft.optimizer.schedule=constant")["optimizer"]
    assert "final_fraction" not in optimizer
    with pytest.raises(RecipeError, match="final_fraction: nothing reads it"):
        overrides = ["sft.optimizer={schedule: constant, final_fraction: 0.1}"]
        open_recipe(path, overrides)


def test_a_wrong_key_or_value_is_still_found(toy_recipe: Callable[..., Path]) -> None:
    path = toy_recipe("full")
    with pytest.raises(RecipeError) as caught:
        open_recipe(path, ["sft.optimizer={rate: 1}", "ppo.sampling={temperature: -1}"])
    lines = str(caught.value).splitlines()
    assert "stages.sft.optimizer.rate: unknown key" in lines[0]
    assert "stages.ppo.sampling.temperature: is -1" in lines[1]


def test_shown_with_the_defaults_that_hold() -> None:
    rows = {row["key"]: row for row in option_rows(PPOPtxOptions)}
    assert rows["optimizer.learning_rate"]["default"] == "5e-06"
    assert rows["optimizer.warmup_steps"]["default"] == "80"
    assert rows["optimizer.schedule"]["default"] == "constant"
    assert rows["sampling.temperature"]["range"] == ">= 0.001, <= 1000"
    assert rows["optimizer"]["type"] == "block"
    rows = {row["key"]: row for row in option_rows(SFTOptions)}
    assert rows["optimizer.schedule"]["default"] == "cosine"
    rows = {row["key"]: row for row in option_rows(Outer)}
    assert rows["middle.inner.a"]["default"] == "11"
    assert rows["middle.inner.b"]["default"] == "2"
    assert rows["middle.from"]["default"] == "7"
    assert (rows["plain"]["default"], rows["plain.inner.a"]["default"]) == ("required", "30")
    assert (rows["nothing"]["default"], rows["nothing.a"]["default"]) == ("null", "1")
    assert rows["several"]["type"] == "block of a, b or block of x"

"""A critic is built where the estimator needs values, and nowhere else may it be set."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from toy_runs import metrics, one_stage, run

from rlhf_kit.components import NEEDS, Component
from rlhf_kit.content import Contents
from rlhf_kit.errors import PluginError, RecipeError
from rlhf_kit.plugins import load_plugins
from rlhf_kit.recipe import filled, open_recipe
from rlhf_kit.recipe.identity import identity
from rlhf_kit.registry import Registry

pytest.importorskip("rlhf_kit_example", reason="pip install -e plugins/example")

WITHOUT = ("ppo.advantage=rloo", "ppo.samples_per_prompt=2")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("coef", "0.5"),
        ("learning_rate", "1e-3"),
        ("normalizer", "running"),
        ("value", "linear"),
        ("value", "{use: separate, from: reward_model}"),
        ("loss", "{clip_range: 0.1}"),
    ],
)
def test_refused_where_nothing_reads_it(
    toy_recipe: Callable[..., Path], key: str, value: str
) -> None:
    path = toy_recipe("full")
    drop(path, "critic")
    with pytest.raises(RecipeError) as caught:
        open_recipe(path, [*WITHOUT, f"ppo.critic.{key}={value}"])
    assert str(caught.value) == (
        "command line: stages.ppo.critic: nothing reads it: advantage 'rloo' needs no values; "
        "remove it"
    )
    open_recipe(path, [f"ppo.critic.{key}={value}"])


def test_what_the_recipe_does_not_write_is_left_out(toy_recipe: Callable[..., Path]) -> None:
    path = toy_recipe("full")
    drop(path, "critic")
    recipe, _, _ = open_recipe(path, WITHOUT)
    assert "critic" not in filled(recipe)["stages"]["ppo"]
    recipe, _, _ = open_recipe(path)
    critic = {"value", "loss", "coef", "learning_rate", "normalizer"}
    assert filled(recipe)["stages"]["ppo"]["critic"].keys() == critic


def test_no_critic_is_built_or_saved(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlhf_kit_policy_gradient.value import LinearValue

    built: list[Any] = []
    init = LinearValue.__init__

    def counted(self: Any, options: Any) -> None:
        built.append(self)
        init(self, options)

    monkeypatch.setattr(LinearValue, "__init__", counted)
    recipe = one_stage(tmp_path / "project", toy_model, steps=2, ptx=None)
    drop(recipe, "critic")
    for key, overrides, count in (("without", WITHOUT, 0), ("with", (), 1)):
        folder = run(recipe, tmp_path / key, *overrides)
        assert len(built) == count
        assert (folder / "value_head.safetensors").is_file() is bool(count)
        assert ("value/loss" in metrics(tmp_path / key)[0]) is bool(count)


def test_a_need_that_there_is_not() -> None:
    with pytest.raises(PluginError, match="no need is called 'value'; did you mean 'values'"):
        Component("advantage", "mine", "a:B", needs=frozenset({"value"}))
    with pytest.raises(PluginError, match="need 'groups' is for advantage; policy_loss knows: own"):
        Component("policy_loss", "mine", "a:B", needs=frozenset({"groups"}))
    with pytest.raises(PluginError, match="need 'values' is for advantage; reward knows: none"):
        Component("reward", "mine", "a:B", needs=frozenset({"values"}))


def test_every_need_is_somebodys() -> None:
    """A built-in has it, or the page for the authors of plugins says who may."""
    page = (Path(__file__).parents[2] / "docs/plugin-authors/README.md").read_text()
    (table,) = re.findall(r"^\| need \|.*\n\|[-|]*\n((?:\|.*\n)+)", page, re.MULTILINE)
    documented = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    own = {need for *_, c in Registry(load_plugins({})).all() for need in c.needs}
    assert own | documented == {need for needs in NEEDS.values() for need in needs}


def test_an_estimator_that_compares_needs_something_to_compare(
    toy_recipe: Callable[..., Path],
) -> None:
    path = toy_recipe("full")
    drop(path, "critic")
    with pytest.raises(RecipeError) as caught:
        open_recipe(path, ["ppo.advantage=rloo", "ppo.samples_per_prompt=1"])
    assert str(caught.value) == (
        "command line: stages.ppo.samples_per_prompt: is 1, and advantage 'rloo' compares the "
        "responses to one prompt; set at least 2"
    )
    with pytest.raises(RecipeError, match=r"stages\.ppo\.samples_per_prompt: is 1, and"):
        open_recipe(path, ["ppo.advantage=rloo"])  # the default is 1
    open_recipe(path, WITHOUT)


def test_a_normaliser_beside_the_estimators_own(toy_recipe: Callable[..., Path]) -> None:
    path = toy_recipe("full")
    drop(path, "critic")
    with pytest.raises(RecipeError) as caught:
        open_recipe(path, [*WITHOUT, "ppo.normalize.advantages=whiten"])
    assert str(caught.value) == (
        "command line: stages.ppo.normalize.advantages: nothing reads it: advantage 'rloo' "
        "normalises its advantages itself; remove it"
    )
    recipe, _, _ = open_recipe(path, WITHOUT)
    written = filled(recipe)
    assert "advantages" not in written["stages"]["ppo"]["normalize"]
    assert "advantages" not in identity(recipe.stages["ppo"].part, Contents())["normalize"]
    again = path.with_name("again.yaml")
    again.write_text(yaml.safe_dump(written, sort_keys=False))
    assert filled(open_recipe(again)[0]) == written
    recipe, _, _ = open_recipe(path)
    assert filled(recipe)["stages"]["ppo"]["normalize"]["advantages"]["use"] == "whiten"


def test_it_is_not_built(toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlhf_kit_policy_gradient.normalizers import Whiten

    built: list[Any] = []
    init = Whiten.__init__
    monkeypatch.setattr(Whiten, "__init__", lambda self, o: built.append(self) or init(self, o))
    recipe = one_stage(tmp_path / "project", toy_model, steps=1, ptx=None)
    drop(recipe, "critic")
    for key, overrides, count in (("without", WITHOUT, 0), ("with", (), 1)):
        run(recipe, tmp_path / key, *overrides)
        assert len(built) == count


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("length", "32"),
        ("per_episode", "1"),
        ("controller", "adaptive"),
        ("loss", "token_nll"),
        ("micro_batch", "32"),
    ],
)
def test_a_mix_of_nothing(toy_recipe: Callable[..., Path], key: str, value: str) -> None:
    """A brother: what says how to mix is refused where no text is mixed in."""
    path = toy_recipe("full")
    drop(path, "ptx")
    with pytest.raises(RecipeError) as caught:
        open_recipe(path, [f"ppo.ptx.{key}={value}"])
    (line,) = str(caught.value).splitlines()
    assert line.startswith("command line: stages.ppo.ptx.text: missing; running text")
    open_recipe(path, [f"ppo.ptx.{key}={value}", "ppo.ptx.text=pretraining"])
    with pytest.raises(RecipeError, match=r"ppo\.ptx\.coef: is 0; should be greater than 0"):
        open_recipe(path, ["ppo.ptx={text: pretraining, coef: 0}"])


def drop(path: Path, key: str) -> None:
    """Take one key out of the block `ppo` of a recipe."""
    values = yaml.safe_load(path.read_text())
    del values["stages"]["ppo"][key]
    path.write_text(yaml.safe_dump(values, sort_keys=False))

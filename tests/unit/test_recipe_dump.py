"""A filled recipe names everything, and loads as the same recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from toy_plugins import (
    RECIPE,
    TOY,
    finished_stage,
    load_toys,
    offering,
    resolved,
    write_distribution,
)

from rlhf_kit.plugins import LoadedPlugins
from rlhf_kit.recipe import dump_yaml, filled, plain


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("site")
    write_distribution(folder, "toy-package", toy_for_dump=TOY)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


@pytest.fixture(scope="module")
def toys(site: Path) -> LoadedPlugins:
    return load_toys(site)


def dumped(loaded: LoadedPlugins, path: Path, *overrides: str) -> str:
    path.write_text(RECIPE)
    return dump_yaml(resolved(loaded, path, *overrides))


def test_every_default_is_filled_in(toys: LoadedPlugins, tmp_path: Path) -> None:
    values = yaml.safe_load(dumped(toys, tmp_path / "r.yaml"))
    assert values["name"] == "r"
    assert values["model"] == {"use": "toy-model", "path": None, "width": 8}
    assert values["data"]["demos"] == {
        "use": "toy-jsonl",
        "path": str(tmp_path / "demos.jsonl"),
        "limit": None,
    }
    assert values["stages"]["sft"] == {"use": "toy-sft", "data": "demos", "lr": 1e-5}
    assert values["stages"]["ppo"] == {
        "use": "toy-ppo",
        "from": "sft",
        "critic": "reward",
        "advantage": {"use": "toy-gae", "lam": 0.9},
        "reward": {
            "use": "toy-weighted",
            "parts": {
                "a": {"use": "toy-keyword", "word": "good"},
                "b": {"use": "toy-keyword", "word": "fine"},
            },
        },
        "bonus": None,
        "kl_coef": 0.05,
        "steps": 10,
        "schedule": "constant",
        "sampling": {"temperature": 1.0},
        "size": "auto",
    }


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("ppo.from=../elsewhere", "ppo.critic=null", "model.path=weights"),
        (
            "sft.data={use: toy-jsonl, path: other.jsonl}",
            "data={compared: {use: toy-compared, from: collect}}",
            "seed=11",
            "name=n-1",
        ),
        ("ppo.bonus=toy-keyword", "ppo.size=3"),
    ],
)
def test_round_trip(toys: LoadedPlugins, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    finished_stage(tmp_path.parent / "elsewhere", "policy")
    first = dumped(toys, tmp_path / "r.yaml", *overrides)
    elsewhere = tmp_path / "runs" / "deep" / "recipe.yaml"
    elsewhere.parent.mkdir(parents=True)
    elsewhere.write_text(first)
    again = resolved(toys, elsewhere)
    assert dump_yaml(again) == first
    original = resolved(toys, tmp_path / "r.yaml", *overrides)
    for key, stage in original.stages.items():
        assert plain(again.stages[key].part) == plain(stage.part)
        assert again.stages[key].needs == stage.needs


def test_only_ambiguous_names_carry_their_package(site: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    write_distribution(tmp_path / "d", "d", other_d=offering("memory", "toy-lora"))
    (tmp_path / "d" / "other_d.py").rename(other)
    loaded = load_toys(site, other)
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE.replace("use: toy-lora", "use: toy-package/toy-lora"))
    recipe = resolved(loaded, path)
    assert filled(recipe)["memory"]["use"] == "toy-package/toy-lora"
    assert filled(recipe)["model"]["use"] == "toy-model"
    path.write_text(dump_yaml(recipe))
    assert dump_yaml(resolved(loaded, path)) == dump_yaml(recipe)


def test_plain_is_json_and_changes_with_the_data_it_names(
    toys: LoadedPlugins, tmp_path: Path
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    first = plain(resolved(toys, path).stages["sft"].part)
    assert json.loads(json.dumps(first)) == first
    assert first["use"] == "toy-package/toy-sft"
    assert first["data"]["use"] == "toy-package/toy-jsonl"
    path.write_text("# a comment moves every line\n" + RECIPE)
    assert plain(resolved(toys, path).stages["sft"].part) == first
    changed = plain(resolved(toys, path, "data.demos.limit=5").stages["sft"].part)
    assert changed != first

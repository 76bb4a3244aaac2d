"""YAML and overrides become values that know their lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_kit.errors import RecipeError
from rlhf_kit.recipe import apply_overrides, read_recipe
from rlhf_kit.recipe.document import Document


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(text: str) -> Document:
    Path("r.yaml").write_text(text)
    return read_recipe(Path("r.yaml"))


def refusal(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        read(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_values_and_lines() -> None:
    document = read("a: 1\nb:\n  c: x\n\n  d:\n    - p\n    - q: 2.5\n")
    assert document.values == {"a": 1, "b": {"c": "x", "d": ["p", {"q": 2.5}]}}
    assert document.where(("b", "c")) == "r.yaml:3"
    assert document.where(("b", "d", "1", "q")) == "r.yaml:7"
    assert document.where(("b", "absent")) == "r.yaml:2"
    assert document.path.is_absolute()


def test_a_path_outside_the_current_folder_is_shown_whole(tmp_path: Path, monkeypatch) -> None:
    document = read("a: 1")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert document.where(("a",)) == f"{tmp_path / 'r.yaml'}:1"


def test_keys_are_text_and_values_are_yaml() -> None:
    document = read("on: yes\n1: 1e-5\nx: 1.0e-5\n")
    assert document.values == {"on": True, "1": "1e-5", "x": 1e-5}


def test_anchors_and_merges() -> None:
    document = read("a: &d {x: 1, y: 2}\nb:\n  <<: *d\n  y: 3\nc: *d\n")
    assert document.values["b"] == {"x": 1, "y": 3}
    assert document.values["c"] == {"x": 1, "y": 2}
    assert document.values["c"] is not document.values["a"]
    assert document.where(("b", "y")) == "r.yaml:4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a:\n  b: 1\n  c: 2\n  b: 3\n",
            "r.yaml:4: a.b: written twice (first on line 2); keep one",
        ),
        ("a: 1\nb: [1, 2\n", "r.yaml:3: not valid YAML: "),
        ("a: 1\n b: 2\n", "r.yaml:2: not valid YAML: "),
        ("a: 1\nb: \x07\n", "r.yaml:2: not valid YAML: "),
        ("a: !python/object:os.system x\n", "r.yaml:1: not valid YAML: could not determine"),
        ("a: 1\n---\nb: 2\n", "r.yaml:2: not valid YAML: expected a single document"),
        ("a: &x\n  b: *x\n", "r.yaml:1: a.b: contains itself"),
        ("? [1]\n: 2\n", "r.yaml:1: a key should be a word"),
        ("- a\n- b\n", "r.yaml:1: is not a mapping; a recipe has the keys model, memory and"),
        ("", "r.yaml:1: is empty; "),
    ],
)
def test_refusals_of_files(text: str, message: str) -> None:
    assert refusal(text).startswith(message)


def test_missing_file_and_not_text() -> None:
    with pytest.raises(RecipeError, match=r"^no\.yaml: no such file"):
        read_recipe(Path("no.yaml"))
    Path("bin.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(RecipeError, match=r"^bin\.yaml:1: not UTF-8 text"):
        read_recipe(Path("bin.yaml"))
    with pytest.raises(RecipeError, match="is not a file"):
        read_recipe(Path("."))


BASE = """\
seed: 1
model: big
memory: {use: hydra, layers: 4}
stages:
  ppo:
    use: ppo
    kl_coef: 0.1
    bonus: null
    reward: {use: model, from: rm}
"""


def test_override_by_top_level_key_and_by_stage_id() -> None:
    document = read(BASE)
    changed = apply_overrides(document, ["seed=7", "ppo.kl_coef=0.05", "stages.ppo.steps=[1, 2]"])
    assert changed.values["seed"] == 7
    assert changed.values["stages"]["ppo"]["kl_coef"] == 0.05
    assert changed.values["stages"]["ppo"]["steps"] == [1, 2]
    assert changed.where(("stages", "ppo", "kl_coef")) == "command line"
    assert changed.where(("stages", "ppo")) == "r.yaml:5"
    assert document.values["seed"] == 1, "the original is left alone"


def test_changing_use_drops_the_options_of_the_old_component() -> None:
    changed = apply_overrides(read(BASE), ["memory.use=lora", "memory.rank=8"])
    assert changed.values["memory"] == {"use": "lora", "rank": 8}
    assert changed.where(("memory",)) == "command line"
    kept = apply_overrides(read(BASE), ["memory.use=hydra"])
    assert kept.values["memory"] == {"use": "hydra", "layers": 4}


def test_an_override_below_a_bare_name_or_null() -> None:
    changed = apply_overrides(read(BASE), ["model.width=3", "ppo.bonus.use=x", "ppo.new.k=1"])
    assert changed.values["model"] == {"use": "big", "width": 3}
    assert changed.values["stages"]["ppo"]["bonus"] == {"use": "x"}
    assert changed.values["stages"]["ppo"]["new"] == {"k": 1}


def test_an_override_of_a_whole_block_forgets_its_lines() -> None:
    changed = apply_overrides(read(BASE), ["ppo.reward={use: keyword}"])
    assert changed.values["stages"]["ppo"]["reward"] == {"use": "keyword"}
    assert changed.where(("stages", "ppo", "reward", "from")) == "command line"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "pqo.kl_coef=1",
            "command line: pqo.kl_coef: 'pqo' is neither a top-level key nor a stage",
        ),
        ("pqo.kl_coef=1", "did you mean 'ppo'?"),
        ("ppo.kl_coef", "command line: ppo.kl_coef: is no override; write key=value"),
        ("ppo..x=1", "is no override"),
        ("=1", "is no override"),
        ("seed=[1", "command line: seed: not valid YAML"),
        ("seed.x=1", "command line: seed.x: seed is 1, which has no keys below it"),
        ("ppo.reward={a: 1, a: 2}", "command line: ppo.reward: written twice"),
    ],
)
def test_refusals_of_overrides(override: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        apply_overrides(read(BASE), [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)

"""What a later stage or a continuation reads is what was written, or it is refused by name."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from toys import write_toy_recipe

from rlhf_kit.errors import DataError, RecipeError
from rlhf_kit.integrity import file_digests
from rlhf_kit.recipe import open_recipe
from rlhf_kit.run import run_recipe
from rlhf_kit.run_folder import read_record, sealed

AGAIN = ("ppo.steps=1", "ppo.kl.coef=0.3")  # so that the later stages have to run


def run(recipe: Path, out: Path, *overrides: str) -> dict[str, Any]:
    resolved, loaded, _ = open_recipe(recipe, overrides)
    return run_recipe(resolved, loaded, out=out, plain=True)


@pytest.fixture(scope="module")
def project(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    return write_toy_recipe(folder, toy_model, "hydra", ppo={"steps": 1})


@pytest.fixture(scope="module")
def finished(project: Path) -> Path:
    run(project, project.parent / "finished")
    return project.parent / "finished"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def flipped(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(bytes(content))


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


READ = [
    "sft/branch.safetensors",
    "sft/memory.json",
    "collect/comparisons.jsonl",
    "reward_model/branch.safetensors",
    "reward_model/memory.json",
    "reward_model/reward_head.safetensors",
    "reward_model/reward_head.json",
    "reward_model/reward_proof.json",
]


def test_every_file_of_a_stage_is_in_its_record(finished: Path) -> None:
    for stage in (finished / "stages").iterdir():
        files = read_record(stage / "stage.json")["files"]
        found = {str(path.relative_to(stage)) for path in stage.rglob("*")}
        assert found - {"last", "critic"} == {*files, "stage.json"}
        if stage.name not in ("ppo", "evaluate"):  # which nothing here reads
            assert all(f"{stage.name}/{file}" in READ for file in files)


@pytest.mark.parametrize("damage", ["flipped", "half", "empty", "gone"])
@pytest.mark.parametrize("name", READ)
def test_damage_is_found_before_anything_runs(
    project: Path, copied: Path, name: str, damage: str
) -> None:
    path = copied / "stages" / name
    if damage == "flipped":
        flipped(path, random.Random(name))
    elif damage == "gone":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if damage == "half" else b"")
    before, stage = everything(copied), name.partition("/")[0]
    # What reads it: of the comparisons, the reward model alone.
    reader = "reward_model.epochs=2" if stage == "collect" else AGAIN[1]
    with pytest.raises((DataError, RecipeError)) as caught:
        run(project, copied, reader)
    said = str(caught.value)
    wrong = "is missing" if damage == "gone" else "is damaged, or was edited"
    assert said.startswith(f"{path}: {wrong}") and "\n" not in said
    assert f"remove the folder of stage {stage!r} and the stage runs again" in said
    assert everything(copied) == before


def test_what_the_line_says_helps(project: Path, finished: Path, copied: Path) -> None:
    folder = copied / "stages/sft"
    flipped(folder / "branch.safetensors", random.Random(1))
    shutil.rmtree(folder)
    run(project, copied)
    weights = "stages/ppo/branch.safetensors"
    assert (copied / weights).read_bytes() == (finished / weights).read_bytes()


def test_a_folder_of_another_run_is_compared_too(
    project: Path, copied: Path, tmp_path: Path
) -> None:
    flipped(copied / "stages/sft/branch.safetensors", random.Random(2))
    with pytest.raises(DataError, match=r"sft/branch\.safetensors: is damaged, or was edited"):
        run(project, tmp_path / "other", f"ppo.from={copied}/stages/sft")


def test_no_flipped_bit_of_a_record_changes_what_is_read(copied: Path) -> None:
    draw = random.Random(3)
    for name in ("stages/sft/stage.json", "manifest.json"):
        path = copied / name
        text, good = path.read_bytes(), read_record(path)
        for _ in range(150):
            flipped(path, draw)
            try:
                assert read_record(path) == good  # a blank between two keys, say
            except DataError as error:
                assert "is damaged, or was edited" in str(error) or "is of format" in str(error)
            path.write_bytes(text)


def test_without_its_manifest_what_is_finished_stays_finished(
    project: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the line about a damaged one says."""
    path = copied / "manifest.json"
    path.write_text(path.read_text().replace("fingerprints", "fingerprint"))
    with pytest.raises(DataError, match=r"manifest\.json: is damaged.*remove that file"):
        run(project, copied)
    path.unlink()
    run(project, copied)
    assert capsys.readouterr().err.count("finished already") == 5


def test_a_record_that_is_read_back_is_sealed_as_it_was(tmp_path: Path) -> None:
    content = {"format": 3, "summary": {"a": 0.1 + 0.2, "b": 1e-17, "c": None, "é": "\ud83d\ude00"}}
    (tmp_path / "stage.json").write_text(json.dumps(sealed(content), ensure_ascii=True))
    assert read_record(tmp_path / "stage.json") == sealed(content)


def test_what_is_about_to_be_replaced_need_not_be_whole(
    project: Path, copied: Path, tmp_path: Path
) -> None:
    """Weights of an older recipe, deleted for the sake of space."""
    (copied / "stages/sft/branch.safetensors").unlink()
    changed = ("sft.optimizer.learning_rate=0.002",)
    run(project, copied, *changed)
    run(project, tmp_path / "fresh", *changed)
    weights = "stages/ppo/branch.safetensors"
    assert (copied / weights).read_bytes() == (tmp_path / "fresh" / weights).read_bytes()


def test_hidden_files_are_nobodys(project: Path, copied: Path, tmp_path: Path) -> None:
    (copied / "stages/sft/.DS_Store").write_text("x")
    assert ".DS_Store" not in file_digests(copied / "stages/sft")
    run(project, copied, AGAIN[1])

"""Going on with a run: finished stages, changed recipes, Ctrl-C, a kill, and the same numbers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from toy_runs import EVERY_STEP, newest
from toys import COMMAND, environment, write_toy_recipe
from watchers import write_watcher

from rlhf_kit.errors import RecipeError
from rlhf_kit.recipe import open_recipe
from rlhf_kit.run import _located, run_recipe

STEPS = 6
PPO = {"steps": STEPS, "inner_epochs": 2, "kl": {"controller": {"use": "adaptive", "target": 0.1}}}


def run(recipe: Path, out: Path, *overrides: str) -> dict[str, Any]:
    resolved, loaded, _ = open_recipe(recipe, overrides)
    return run_recipe(resolved, loaded, out=out, plain=True)


def metrics(out: Path) -> dict[tuple[str, int], dict[str, float]]:
    """What each step reported, without times and stamps. There is one row for every step."""
    found = {}
    for line in (out / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        varies = ("time", "run", "attempt", "fingerprint")
        kept = {k: v for k, v in row.items() if k not in varies and not k.startswith("seconds/")}
        assert (row["stage"], row["step"]) not in found
        found[row["stage"], row["step"]] = kept
    return found


def summary(out: Path) -> dict[str, Any]:
    values = json.loads((out / "summary.json").read_text())
    return {k: v for k, v in values.items() if k not in ("seconds", "peak_rss_mib", "name")}


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "stages/ppo/branch.safetensors")


def written(out: Path) -> dict[str, int]:
    """When each artifact was written."""
    return {
        str(path.relative_to(out)): path.stat().st_mtime_ns
        for part in ("stages", "superseded")
        for path in sorted((out / part).rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def project(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    return write_toy_recipe(folder, toy_model, "hydra", ppo=PPO)


@pytest.fixture(scope="module")
def finished(project: Path) -> Path:
    """An uninterrupted run."""
    out = project.parent / "finished"
    run(project, out)
    return out


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of it to change, with its times of writing."""
    subprocess.run(["cp", "-a", str(finished), str(tmp_path / "run")], check=True)
    return tmp_path / "run"


def test_finished_stages_are_not_run_again(
    project: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, numbers = written(copied), metrics(copied)
    assert len(before) > 10
    run(project, copied)
    shown = capsys.readouterr().err
    for stage in ("sft", "collect", "reward_model", "ppo", "evaluate"):
        assert f"[{stage}] finished already" in shown
    assert written(copied) == before
    assert metrics(copied) == numbers


def test_new_comparisons_are_the_ones_learned_from(project: Path, copied: Path) -> None:
    """A changed `collect` replaces its file after the later stages have been built."""
    before = (copied / "stages/reward_model/reward_head.safetensors").read_bytes()
    run(project, copied, "collect.sampling.temperature=0.5")
    fresh = copied.with_name("fresh")
    run(project, fresh, "collect.sampling.temperature=0.5")
    again = (copied / "stages/reward_model/reward_head.safetensors").read_bytes()
    assert again == (fresh / "stages/reward_model/reward_head.safetensors").read_bytes()
    assert again != before


def test_an_edited_reward_file_counts_as_a_change(
    toy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_toy_recipe(tmp_path / "project", toy_model, "hydra")
    run(recipe, tmp_path / "run")
    reward = recipe.parent / "reward.py"
    reward.write_text(reward.read_text() + "\n# edited\n")
    capsys.readouterr()
    run(recipe, tmp_path / "run")
    shown = capsys.readouterr().err
    assert "[sft] finished already" in shown
    for stage in ("collect", "reward_model", "ppo", "evaluate"):
        assert f"[{stage}] what it depends on has changed (" in shown


def test_an_observer_that_fails_does_not_stop_the_run(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watcher = tmp_path / "watcher.py"
    watched = write_watcher(
        watcher,
        "def step_ended(self, stage, step, metrics):\n    raise OSError('no route to host')\n",
    )
    resolved, loaded, _ = open_recipe(project, [watched], [watcher])
    run_recipe(resolved, loaded, out=tmp_path / "run", plain=True)
    shown = capsys.readouterr().err
    said = [line for line in shown.splitlines() if "no route to host" in line]
    assert len(said) == 1 and "observer 'watcher' of package 'watcher' failed: OSError" in said[0]


def test_a_changed_recipe_sets_aside_only_what_depends_on_it(
    project: Path, finished: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = written(copied)
    run(project, copied, "ppo.kl.coef=0.5")
    shown = capsys.readouterr().err
    for stage in ("sft", "collect", "reward_model"):
        assert f"[{stage}] finished already" in shown
    after = written(copied)
    for stage in ("ppo", "evaluate"):
        assert f"[{stage}] what it depends on has changed (" in shown
        for name, time in before.items():
            if name.startswith(f"stages/{stage}/"):
                kept = name.replace(f"stages/{stage}/", f"superseded/{stage}-1/")
                assert after[kept] == time
                assert (copied / kept).read_bytes() == (finished / name).read_bytes()
                assert after[name] > time
    for name, time in before.items():
        if not name.startswith(("stages/ppo/", "stages/evaluate/")):
            assert after[name] == time, name
    assert not any(torch.equal(t, weights(finished)[n]) for n, t in weights(copied).items())
    # Back to the first recipe: the numbers of the first run.
    run(project, copied)
    assert (copied / "superseded/ppo-2").is_dir()
    assert summary(copied) == summary(finished)


def test_changed_data_invalidates_what_reads_it(
    project: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = project.parent / "prompts.jsonl"
    text = data.read_text()
    try:
        data.write_text(text.replace("Now sea", "Now the sea"))
        run(project, copied)
    finally:
        data.write_text(text)
    shown = capsys.readouterr().err
    assert "[sft] finished already" in shown
    for stage in ("collect", "reward_model", "ppo", "evaluate"):
        assert f"[{stage}] what it depends on has changed (" in shown


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    project: Path, finished: Path, tmp_path: Path
) -> None:
    """Also: it is the saved recipe that is run again, from elsewhere."""
    saved = tmp_path / "elsewhere.yaml"
    saved.write_text((finished / "recipe.yaml").read_text())
    run(saved, tmp_path / "again")
    assert metrics(tmp_path / "again") == metrics(finished)
    assert summary(tmp_path / "again") == summary(finished)
    assert all(torch.equal(t, weights(finished)[n]) for n, t in weights(tmp_path / "again").items())
    run(project, tmp_path / "other", "seed=2", "ppo.steps=1")
    other, first = metrics(tmp_path / "other"), metrics(finished)
    assert all(other[key] != first[key] for key in other)


def test_what_a_run_folder_says(project: Path, finished: Path) -> None:
    values = yaml.safe_load((finished / "recipe.yaml").read_text())
    assert values["stages"]["ppo"]["critic"]["coef"] == 0.1  # defaults are filled in
    assert values["stages"]["ppo"]["kl"]["controller"]["horizon"] == 10000
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["attempts"][-1]["libraries"]["torch"] == torch.__version__
    assert manifest["fingerprints"].keys() == values["stages"].keys()
    assert len(set(manifest["fingerprints"].values())) == 5
    rows = metrics(finished)
    assert [step for stage, step in rows if stage == "ppo"] == list(range(STEPS))
    assert {stage for stage, _ in rows} == {"sft", "collect", "reward_model", "ppo"}


@pytest.fixture
def slow_project(project: Path, tmp_path: Path, finished: Path) -> Iterator[tuple[Path, Path]]:
    """A recipe that differs from the finished run only in taking its time, and its run folder.

    The slowness is an observer: it changes no fingerprint of a stage.
    """
    write_watcher(
        tmp_path / "slow.py",
        "def rollout_collected(self, stage, step, rollout):\n"
        "    import time\n"
        "    time.sleep(0.25)\n",
    )
    yield tmp_path / "slow.py", tmp_path / "run"


def start(project: Path, out: Path, plugin: Path) -> subprocess.Popen[str]:
    slow = ("observers.slow.use=slow", "--plugin", str(plugin))
    return subprocess.Popen(
        [*COMMAND, "run", str(project), "--out", str(out), *slow],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=environment(),
    )


def until(process: subprocess.Popen[str], text: str) -> list[str]:
    """Read lines of standard error up to one with ``text``."""
    assert process.stderr is not None
    seen: list[str] = []
    for line in process.stderr:
        seen.append(line)
        if text in line:
            return seen
    raise AssertionError(f"{text!r} never came:\n{''.join(seen)}")


def test_ctrl_c_saves_and_the_same_command_goes_on(
    project: Path, finished: Path, slow_project: tuple[Path, Path]
) -> None:
    plugin, out = slow_project
    process = start(project, out, plugin)
    until(process, f"[ppo] step 2/{STEPS}")
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130, rest
    last = rest.strip().splitlines()[-1]
    said = re.fullmatch(
        rf"stopped: stopped after step (\d) of {STEPS} of stage 'ppo', saved; "
        "the same command goes on from here",
        last,
    )
    assert said, last
    done = int(said[1])  # 2 or 3, or a little later on a busy machine
    assert 2 <= done < STEPS
    assert "Traceback" not in rest
    assert not (out / "stages/ppo/branch.safetensors").exists()
    assert newest(out).exists()

    process = start(project, out, plugin)
    _, shown = process.communicate(timeout=120)
    assert process.returncode == 0, shown
    assert f"[ppo] going on after step {done} of {STEPS}" in shown
    assert "[sft] finished already" in shown
    assert f"[ppo] step {done}/{STEPS}" not in shown
    assert f"[ppo] step {done + 1}/{STEPS}" in shown
    assert metrics(out) == metrics(finished)  # bit for bit
    assert summary(out) == summary(finished)
    assert all(torch.equal(t, weights(finished)[n]) for n, t in weights(out).items())
    seconds = json.loads((out / "summary.json").read_text())["seconds"]
    assert seconds["ppo"] >= 0.25 * STEPS  # both attempts count
    assert seconds["total"] >= sum(v for k, v in seconds.items() if k != "total") - 0.5


def test_kill_during_ppo_leaves_a_state_to_go_on_from(
    project: Path, finished: Path, slow_project: tuple[Path, Path]
) -> None:
    plugin, out = slow_project
    process = start(project, out, plugin)
    until(process, f"[ppo] step 2/{STEPS}")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    for path in out.rglob("*.json"):
        json.loads(path.read_text())
    for path in out.rglob("*.safetensors"):
        load_file(path)
    run(project, out)
    assert metrics(out) == metrics(finished)
    assert summary(out) == summary(finished)


@pytest.mark.parametrize("memory", ["lora", "full"])
def test_a_checkpoint_restores_every_strategy(
    toy_recipe: Callable[..., Path],
    tmp_path: Path,
    memory: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Saved after every step, stopped by an observer's error in the fourth."""
    recipe = toy_recipe(memory, ppo=PPO)
    run(recipe, tmp_path / "whole")
    stopping = tmp_path / "stopping.py"
    watched = write_watcher(
        stopping,
        "def rollout_collected(self, stage, step, rollout):\n"
        "    if step == 3:\n"
        "        raise KeyboardInterrupt\n",
    )
    resolved, loaded, _ = open_recipe(recipe, [watched, EVERY_STEP], [stopping])
    with pytest.raises(KeyboardInterrupt):
        run_recipe(resolved, loaded, out=tmp_path / "part", plain=True)
    checkpoint = torch.load(newest(tmp_path / "part"), weights_only=True)
    assert checkpoint["step"] == 3
    run(recipe, tmp_path / "part")
    assert metrics(tmp_path / "part") == metrics(tmp_path / "whole")
    assert summary(tmp_path / "part") == summary(tmp_path / "whole")


def test_an_error_names_the_stage_it_is_in() -> None:
    """Also one that speaks of another stage, whose name begins alike."""
    for place in ("recipe.yaml:3: stages.ppo.reward: is 3", "recipe.yaml:3: stages.ppo: is 3"):
        assert _located(RecipeError(place), "ppo") == place
    other = "recipe.yaml:3: stages.ppo2.reward: is 3"
    assert _located(RecipeError(other), "ppo") == f"stage 'ppo': {other}"

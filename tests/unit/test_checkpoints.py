"""When a stage saves its place, what it goes on from, and who asked it to stop."""

from __future__ import annotations

import os
import pty
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy_runs import EVERY_STEP, execution_of, interrupted, metrics, newest, one_stage, run, summary
from toys import environment
from watchers import write_watcher

from rlhf_kit.context import RunContext
from rlhf_kit.engine.checkpoints import Checkpoints
from rlhf_kit.errors import DataError, PluginError, RecipeError
from rlhf_kit.recipe import filled, open_recipe
from rlhf_kit.stage_options import CheckpointOptions


class Counter:
    """A part with a number and some weight."""

    def __init__(self) -> None:
        self.value = torch.zeros(1000)

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


def some(folder: Path, steps: int = 4, **options: Any) -> tuple[Checkpoints, Counter]:
    """After ``steps`` steps, each saved."""
    checkpoints, counter = Checkpoints(folder, CheckpointOptions(**options)), Counter()
    for done in range(1, steps + 1):
        counter.value += 1
        checkpoints.save(done, {"counter": counter})
    return checkpoints, counter


def loaded(folder: Path) -> tuple[int, float, list[str]]:
    said: list[str] = []
    counter = Counter()
    done = Checkpoints(folder, CheckpointOptions()).load({"counter": counter}, said.append)
    assert bool((counter.value == counter.value[0]).all())
    return done, counter.value[0].item(), said


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_as_many_as_the_recipe_keeps(tmp_path: Path, keep: int) -> None:
    some(tmp_path, keep=keep)
    names = [f"{4 - i:08}{suffix}" for i in range(keep) for suffix in (".pt", ".json")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert loaded(tmp_path) == (4, 4.0, [])


def test_when_one_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    often = Checkpoints(tmp_path, CheckpointOptions(minutes=2, steps=3))
    assert [often.due(done) for done in range(1, 7)] == [False, False, True] * 2
    now[0] = 119.0
    assert not often.due(1)
    now[0] = 121.0
    assert often.due(1)
    often.save(1, {"counter": Counter()})
    assert not often.due(2)
    never = Checkpoints(tmp_path, CheckpointOptions(minutes=None))
    now[0] = 1e9
    assert not any(never.due(done) for done in range(1, 100))


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    some(tmp_path)
    path, draw = max(tmp_path.glob("*.pt")), random.Random(0)
    good, record = path.read_bytes(), path.with_suffix(".json").read_text()
    for _ in range(40):
        place, bit = draw.randrange(len(good)), 1 << draw.randrange(8)
        path.write_bytes(good[:place] + bytes([good[place] ^ bit]) + good[place + 1 :])
        path.with_suffix(".json").write_text(record)
        done, value, said = loaded(tmp_path)
        assert (done, value) == (3, 3.0)
        assert said == [f"{path} is damaged; trying the one before"]
    path.write_bytes(good)
    path.with_suffix(".json").write_text(record)
    assert loaded(tmp_path) == (4, 4.0, [])


@pytest.mark.parametrize("damage", ["empty", "half", "gone", "record"])
def test_what_is_not_whole_is_passed_over(tmp_path: Path, damage: str) -> None:
    some(tmp_path)
    path = max(tmp_path.glob("*.pt"))
    if damage == "gone":
        path.unlink()
    elif damage == "record":
        path.with_suffix(".json").write_text("{")
    else:
        path.write_bytes(
            b"" if damage == "empty" else path.read_bytes()[: path.stat().st_size // 2]
        )
    assert loaded(tmp_path)[:2] == (3, 3.0)


def test_a_damaged_one_does_not_outlive_those_to_come(tmp_path: Path) -> None:
    some(tmp_path, keep=2)
    max(tmp_path.glob("*.pt")).write_bytes(b"")
    checkpoints, counter = Checkpoints(tmp_path, CheckpointOptions(keep=1)), Counter()
    assert checkpoints.load({"counter": counter}, lambda text: None) == 3
    counter.value += 1
    path = checkpoints.save(4, {"counter": counter})
    assert path.is_file() and loaded(tmp_path) == (4, 4.0, [])
    (tmp_path / "somebody's").mkdir()
    checkpoints.save(5, {"counter": counter})
    assert loaded(tmp_path)[0] == 5


def test_where_none_is_whole_the_folder_is_named(tmp_path: Path) -> None:
    some(tmp_path)
    for path in tmp_path.glob("*.pt"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=f"{tmp_path}: no checkpoint in it is whole; remove"):
        loaded(tmp_path)


def test_a_kill_between_checkpoint_and_record_loses_nothing(tmp_path: Path) -> None:
    checkpoints, counter = some(tmp_path)
    (tmp_path / "00000005.pt").write_bytes(b"half")
    (tmp_path / ".00000006.pt.part").write_bytes(b"half")
    assert loaded(tmp_path) == (4, 4.0, [])
    checkpoints.save(7, {"counter": counter})
    assert {path.stem for path in tmp_path.iterdir()} == {"00000004", "00000007"}
    checkpoints.clear()
    assert not tmp_path.exists() and not checkpoints


def test_a_damaged_checkpoint_costs_one_step(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, steps=4)
    whole = run(recipe, tmp_path / "whole")
    path = interrupted(recipe, tmp_path / "parts", 3, monkeypatch)
    path.write_bytes(path.read_bytes()[:-100])
    capsys.readouterr()
    parts = run(recipe, tmp_path / "parts")
    said = capsys.readouterr().err
    assert "is damaged; trying the one before" in said and "going on after step 2 of 4" in said
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert summary(tmp_path / "parts") == summary(tmp_path / "whole")
    for name in ("branch.safetensors", "value_head.safetensors"):
        one, other = load_file(whole / name), load_file(parts / name)
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_what_comes_after_the_last_step_can_be_cut_too(
    stage: str, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from rlhf_kit_hf.policy import TransformersPolicy

    recipe = one_stage(tmp_path / "project", toy_model, stage)
    run(recipe, tmp_path / "whole")

    def cut(self: Any, folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TransformersPolicy, "save", cut)
        with pytest.raises(KeyboardInterrupt) as caught:
            run(recipe, tmp_path / "parts")
    assert re.search(
        rf"in stage '{stage}', saved after \d+ of its steps", caught.value.__notes__[0]
    )
    capsys.readouterr()
    run(recipe, tmp_path / "parts")
    (said,) = re.findall(r"going on after step (\d+) of (\d+)", capsys.readouterr().err)
    assert said[0] == said[1]
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert summary(tmp_path / "parts") == summary(tmp_path / "whole")


def test_figures_of_a_pass_are_there_after_the_last_step(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlhf_kit_hf.reward_model import TransformersRewardModel
    from toys import write_toy_recipe

    recipe = write_toy_recipe(tmp_path / "project", toy_model, "hydra")
    run_all = ("observers={}",)
    run(recipe, tmp_path / "whole", *run_all)

    def cut(self: Any, *inputs: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TransformersRewardModel, "save", cut)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path / "parts", *run_all)
    run(recipe, tmp_path / "parts", *run_all)
    one, other = summary(tmp_path / "whole"), summary(tmp_path / "parts")
    assert one["stages"]["reward_model"] == other["stages"]["reward_model"]


SLOW = """
def rollout_collected(self, stage, step, rollout):
    import time
    time.sleep({seconds} if step > 1 else 0.3)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_who_asks_to_stop_is_told_and_everything_is_saved(
    name: str, toy_model: Path, tmp_path: Path
) -> None:
    process = started(toy_model, tmp_path)
    number = signal.Signals[name]
    process.send_signal(number)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 128 + number, rest
    assert "stopping after this step; Ctrl-C once more to leave at once" in rest
    (said,) = re.findall(
        r"^stopped: stopped after step (\d+) of 40 of stage 'ppo', saved", rest, re.M
    )
    assert newest(tmp_path / "out").stem == f"{int(said):08}"
    assert "Traceback" not in rest


def test_a_second_time_leaves_at_once(toy_model: Path, tmp_path: Path) -> None:
    process = started(toy_model, tmp_path, EVERY_STEP, seconds=60)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert any("stopping after this step" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 130, rest
    assert re.search(r"stopped: interrupted in stage 'ppo', saved after [12] of its steps", rest)
    assert "Traceback" not in rest


def heeding() -> None:
    """As in a shell, whatever the tests run under."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def test_what_is_ignored_stays_ignored(toy_model: Path, tmp_path: Path) -> None:
    """As under `nohup`."""

    def ignore() -> None:
        heeding()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = started(toy_model, tmp_path, preexec_fn=ignore)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, rest


def test_several_signals_are_one_request(toy_model: Path, tmp_path: Path) -> None:
    process = started(toy_model, tmp_path, seconds=0.5)
    number = signal.SIGTERM
    while process.poll() is None:  # until it has left, whatever it is doing
        process.send_signal(number)
        number = signal.SIGHUP if number == signal.SIGTERM else signal.SIGTERM
        time.sleep(0.01)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, rest
    assert "stopped: stopped after step" in rest and rest.count("stopping after") == 1


def test_a_terminal_that_is_gone_loses_nothing(toy_model: Path, tmp_path: Path) -> None:
    master, slave = pty.openpty()
    recipe = one_stage(tmp_path / "project", toy_model, steps=40)
    watched = write_watcher(tmp_path / "slow.py", SLOW.format(seconds=0.3))
    command = [sys.executable, "-m", "rlhf_kit", "run", str(recipe), watched]
    command += ["--plugin", str(tmp_path / "slow.py"), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        command,
        env=environment(),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=heeding,
    )
    os.close(slave)
    seen = b""
    while b"step 2/40" not in seen:
        seen += os.read(master, 4096)
    os.close(master)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=120) == 128 + signal.SIGHUP
    assert newest(tmp_path / "out").is_file()


def test_steps_are_counted_once(tmp_path: Path) -> None:
    execution = execution_of("mine", tmp_path)
    assert list(execution.steps(2, {})) == [0, 1]
    with pytest.raises(PluginError, match=r"'mine': run\.steps was called twice"):
        next(execution.steps(2, {}))


def started(
    model: Path, folder: Path, *overrides: str, seconds: float = 0.3, **options: Any
) -> subprocess.Popen[str]:
    """A run of forty slow steps, two of which are done."""
    recipe = one_stage(folder / "project", model, steps=40)
    watched = write_watcher(folder / "slow.py", SLOW.format(seconds=seconds))
    command = [sys.executable, "-m", "rlhf_kit", "run", str(recipe), watched, *overrides]
    command += ["--plugin", str(folder / "slow.py"), "--out", str(folder / "out")]
    options = {"preexec_fn": heeding, **options}
    process = subprocess.Popen(
        command, env=environment(), stderr=subprocess.PIPE, text=True, **options
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "step 2/40" in line:
            return process
    raise AssertionError("the second step never came")


def test_the_block_changes_no_result(toy_model: Path, tmp_path: Path) -> None:
    path = one_stage(tmp_path / "project", toy_model)
    prints = set()
    for overrides in ((), ("checkpoint.minutes=0.5", "checkpoint.steps=3", "checkpoint.keep=1")):
        recipe = open_recipe(path, overrides)[0]
        prints |= {r.fingerprint for r in RunContext(recipe, tmp_path).records().values()}
    assert len(prints) == 1
    assert filled(recipe)["checkpoint"] == {"minutes": 0.5, "steps": 3, "keep": 1}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{minutes: 0}", r"checkpoint\.minutes: is 0; should be greater than 0"),
        ("{keep: 0}", r"checkpoint\.keep: is 0; should be greater than or equal to 1"),
        ("{minuts: 1}", r"checkpoint\.minuts: unknown key; did you mean 'minutes'"),
        ("often", r"checkpoint: "),
    ],
)
def test_a_wrong_block_is_refused_at_its_line(
    text: str, says: str, toy_model: Path, tmp_path: Path
) -> None:
    path = one_stage(tmp_path / "project", toy_model)
    path.write_text(path.read_text() + f"checkpoint: {text}\n")
    line = len(path.read_text().splitlines())
    with pytest.raises(RecipeError, match=rf":{line}: {says}"):
        open_recipe(path)


def test_nothing_is_left_of_a_finished_stage(toy_model: Path, tmp_path: Path) -> None:
    run(one_stage(tmp_path / "project", toy_model, steps=2), tmp_path / "out", EVERY_STEP)
    assert not [path for path in (tmp_path / "out").rglob("checkpoints/*") if os.path.exists(path)]

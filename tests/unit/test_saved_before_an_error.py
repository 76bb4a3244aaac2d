"""What was complete when a step began is saved when an error leaves it, if it is still there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rlhf_kit_policy_gradient.losses import PPOClip
from safetensors.torch import load_file
from torch import nn
from toy_runs import execution_of, metrics, newest, one_stage, run, summary

from rlhf_kit.engine import checkpoint
from rlhf_kit.engine.checkpoint import write_atomically
from rlhf_kit.engine.held import Held, Overwritten
from rlhf_kit.errors import DataError, PluginError, interruption
from rlhf_kit.run_folder import FORMAT

FAILING = """
import os, torch

calls = []

def reward(responses):
    calls.append(1)
    if len(calls) > 5 and not os.path.exists({again!r}):
        raise ConnectionError("the judge is away")
    return torch.rand(len(responses)) + torch.tensor([len(x) / 50 for x in responses])
"""
GATE = {"skip": ["repeatable", "reward"]}


@pytest.mark.parametrize("memory", ["hydra", "lora"])
def test_a_reward_that_fails_costs_no_step(
    memory: str, toy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again"
    reward = FAILING.format(again=str(again))
    recipe = one_stage(
        tmp_path / "project", toy_model, memory=memory, reward=reward, steps=6, gate=GATE
    )
    with pytest.raises(PluginError, match="ConnectionError: the judge is away"):
        run(recipe, tmp_path / "parts")
    said = capsys.readouterr().err
    (done,) = re.findall(r"\[ppo\] saved after (\d) of its steps; the same command goes on", said)
    assert int(done) > 1 and newest(tmp_path / "parts").stem == f"{int(done):08}"
    again.touch()
    parts = run(recipe, tmp_path / "parts")
    assert f"going on after step {done} of 6" in capsys.readouterr().err
    whole = run(recipe, tmp_path / "whole")
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert summary(tmp_path / "parts") == summary(tmp_path / "whole")
    for path in whole.glob("*.safetensors"):
        one, other = load_file(path), load_file(parts / path.name)
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_what_was_learned_in_half_a_step_is_not_saved(
    toy_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, steps=4, inner_epochs=2)
    calls, whole = [0], PPOClip.__call__

    def failing(self: Any, *inputs: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == 10:
            raise MemoryError
        return whole(self, *inputs, **named)

    with monkeypatch.context() as patch:
        patch.setattr(PPOClip, "__call__", failing)
        with pytest.raises(MemoryError):
            run(recipe, tmp_path / "parts", "checkpoint.minutes=null")
    assert "saved after" not in capsys.readouterr().err
    assert not list((tmp_path / "parts").rglob("*.pt"))
    assert calls[0] == 10


def test_held_state_is_as_it_was() -> None:
    model, small = nn.Linear(100, 100), nn.Linear(2, 2)
    held = Held(small, "small")
    expected = {name: value.clone() for name, value in small.state_dict().items()}
    with torch.no_grad():
        small.weight.add_(1.0)
    assert all(torch.equal(value, expected[name]) for name, value in held.state_dict().items())
    held = Held(model, "model")
    assert held.state_dict()["weight"].data_ptr() == model.weight.data_ptr()  # no copy
    with torch.no_grad():
        model.weight[0, 0] = 0.5
    with pytest.raises(Overwritten):
        held.state_dict()


def test_an_optimizers_step_counts_as_writing() -> None:
    model = nn.Linear(100, 100)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        held = Held(model, "model"), Held(optimizer, "optimizer")
        model(torch.ones(100)).sum().backward()
        held[0].state_dict()
        optimizer.step()
        with pytest.raises(Overwritten):
            held[0].state_dict()
    with pytest.raises(Overwritten):
        held[1].state_dict()


class Leaving:
    """A file in which somebody presses Ctrl-C."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: Any) -> int:
        raise KeyboardInterrupt

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_ctrl_c_while_a_checkpoint_is_written_is_no_error_of_the_disk(tmp_path: Path) -> None:
    """torch answers it with an error of its own about the position in the file."""
    path = tmp_path / "x.pt"
    with pytest.raises((RuntimeError, KeyboardInterrupt)) as caught:
        write_atomically(path, lambda file: torch.save({"x": torch.ones(9)}, Leaving(file)))
    assert isinstance(interruption(caught.value), KeyboardInterrupt)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_while_a_checkpoint_is_written_leaves(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, steps=3)
    real = torch.save

    def save(content: Any, file: Any) -> None:
        real(content, file if content["step"] == 1 else Leaving(file))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.torch, "save", save)
        with pytest.raises(KeyboardInterrupt) as caught:
            run(recipe, tmp_path / "out", "checkpoint.steps=1")
    assert caught.value.__notes__ == ["in stage 'ppo', saved after 1 of its steps"]
    path = newest(tmp_path / "out")
    assert path.stem == "00000001" and torch.load(path, weights_only=True)["step"] == 1


def test_errors_that_answer_each_other_have_an_end() -> None:
    one, other = ValueError("a"), ValueError("b")
    one.__context__, other.__context__ = other, one
    assert interruption(one) is None


class Odd:
    """A part whose state is what the test says."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None: ...


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"coef": np.float64(0.3)}, r"\['coef'\] is a numpy\.float64"),
        ({"a": {"b": [1, lambda: 0]}}, r"\['a'\]\['b'\]\[1\] is a builtins\.function"),
        ({Path("x"): 1}, r" key is a pathlib\.PosixPath"),
        (None, r" returned NoneType; it should return a dict"),
    ],
)
def test_state_that_would_not_come_back_is_refused_before_the_first_step(
    tmp_path: Path, state: Any, says: str
) -> None:
    """It used to be saved, and no continuation could read it."""
    steps = execution_of("mine", tmp_path).steps(2, {"control": Odd(state)})
    with pytest.raises(PluginError, match=rf"'control': state_dict\(\){says}"):
        next(steps)


def test_state_that_comes_back(tmp_path: Path) -> None:
    model = nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    plain = Odd(
        {"a": [1, 2.0, "x", None], 3: (True, b"x"), "t": torch.ones(2), "s": torch.Size([1])}
    )
    state = {"model": model, "optimizer": optimizer, "plain": plain}
    checkpoint.save_checkpoint(tmp_path / "c.pt", 1, state)
    assert checkpoint.load_checkpoint(tmp_path / "c.pt", state) == 1


def test_a_checkpoint_of_foreign_objects_is_one_line(tmp_path: Path) -> None:
    torch.save({"format": FORMAT, "step": 1, "state": {"a": np.float64(1)}}, tmp_path / "c.pt")
    with pytest.raises(DataError, match=r"c\.pt: cannot be read: .*; remove"):
        checkpoint.load_checkpoint(tmp_path / "c.pt", {})


def test_the_error_that_leaves_is_the_one_that_is_told(tmp_path: Path) -> None:
    """Also where what was complete cannot be saved."""
    part = Odd({"a": 1})
    execution = execution_of("mine", tmp_path)
    for step in execution.steps(3, {"part": part}):
        if step == 1:
            execution._before[1]["part"]._held = {"a": lambda: 0}  # type: ignore[index]
            execution.save_before_step()
            break
    assert not list(tmp_path.rglob("*.pt"))


def test_a_long_list_is_held_in_no_time() -> None:
    """A journal grows by a row at every step."""
    lines = Odd({"lines": ["x"] * 100_000})
    calls = 0

    def count(frame: Any, event: str, arg: Any) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    held = Held(lines, "lines")
    sys.setprofile(None)
    assert calls < 500
    lines.state["lines"].append("y")
    assert len(held.state_dict()["lines"]) == 100_000

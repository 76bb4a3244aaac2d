"""What `make chaos` relies on: it sees every difference, and counts what a run was owed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from deaths import Death, Operations
from folders import differences, owed
from safetensors.torch import load_file, save_file

from rlhf_kit.stage_options import CheckpointOptions


def row(step: int, **more: Any) -> str:
    return json.dumps({"stage": "ppo", "step": step, "time": 10.0 * step, "attempt": 1, **more})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder of one stage that has done four steps and saved two."""
    run, stage = tmp_path / "run", tmp_path / "run/stages/ppo"
    (stage / "checkpoints").mkdir(parents=True)
    (run / "metrics.jsonl").write_text("".join(row(step, kl=0.5) + "\n" for step in range(4)))
    (stage / "stage.json").write_text(json.dumps({"finished": False, "seconds": 1.0}))
    (stage / "checkpoints/00000002.json").write_text("{}")
    save_file({"w": torch.zeros(4)}, stage / "branch.safetensors")
    return run


def weight(run: Path) -> None:
    path = run / "stages/ppo/branch.safetensors"
    save_file({"w": load_file(path)["w"] + torch.tensor([0, 0, 0, 1e-7])}, path)


def rewritten(name: str, change: Callable[[str], str]) -> Callable[[Path], Any]:
    return lambda run: (run / name).write_text(change((run / name).read_text()))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (weight, "stages/ppo/branch.safetensors: w: 1 of 4 numbers differ, by up to 1e-07"),
        (
            rewritten("metrics.jsonl", lambda text: text + text.splitlines()[-1] + "\n"),
            "metrics.jsonl: 5 rows, not 4",
        ),
        (
            rewritten("metrics.jsonl", lambda text: text.replace("0.5", "0.25", 1)),
            "metrics.jsonl: row 1: kl: '0.25', not '0.5'",
        ),
        (
            rewritten("metrics.jsonl", lambda text: "".join(text.splitlines(True)[1:])),
            "metrics.jsonl: 3 rows, not 4",
        ),
        (
            rewritten("stages/ppo/stage.json", lambda text: text.replace("false", "true")),
            "stages/ppo/stage.json: finished: 'True', not 'False'",
        ),
        (
            lambda run: (run / "stages/ppo/.branch.safetensors.part").touch(),
            "stages/ppo/.branch.safetensors.part: an orphan",
        ),
        (
            lambda run: (run / "stages/ppo/checkpoints/00000002.json").unlink(),
            "stages/ppo/checkpoints/00000002.json: missing",
        ),
    ],
)
def test_a_difference_is_told(folder: Path, change: Callable[[Path], Any], says: str) -> None:
    other = folder.with_name("other")
    shutil.copytree(folder, other)
    assert differences(other, folder) == []
    change(other)
    assert says in differences(other, folder)


def test_hours_and_attempts_are_none(folder: Path) -> None:
    other = folder.with_name("other")
    shutil.copytree(folder, other)
    again = [row(step, kl=0.5) for step in range(4)]
    again[3] = json.dumps(json.loads(again[3]) | {"time": 77.0, "attempt": 2})
    (other / "metrics.jsonl").write_text("\n".join(again) + "\n")
    (other / "stages/ppo/stage.json").write_text(json.dumps({"finished": False, "seconds": 2.0}))
    assert differences(other, folder) == []


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"minutes": None}, 2),  # the checkpoint that is there
        ({"minutes": None, "steps": 1}, 3),  # of the fourth step only the row may be there
        ({"minutes": None, "steps": 3}, 3),
        ({"minutes": None, "steps": 2}, 2),
        # Rows come every 10 s. When the clock was read after the third step, at 20 s, the last
        # checkpoint was at most so old: it may be the one after the first row, at 0 s, or not.
        ({"minutes": 25 / 60}, 2),
        ({"minutes": 15 / 60}, 2),
        ({"minutes": 5 / 60}, 2),
    ],
)
def test_what_is_owed(folder: Path, options: dict[str, Any], steps: int) -> None:
    assert owed(folder, "ppo", CheckpointOptions(**options)) == steps


@pytest.mark.parametrize(("minutes", "steps"), [(25 / 60, 0), (15 / 60, 1), (5 / 60, 2)])
def test_what_is_owed_by_the_clock(folder: Path, minutes: float, steps: int) -> None:
    shutil.rmtree(folder / "stages/ppo/checkpoints")
    assert owed(folder, "ppo", CheckpointOptions(minutes=minutes)) == steps
    # What an earlier attempt took its time over says nothing.
    rows = [row(step) for step in range(3)] + [json.dumps(json.loads(row(3)) | {"attempt": 2})]
    (folder / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    assert owed(folder, "ppo", CheckpointOptions(minutes=minutes)) == 0


WRITING = """
import sys
from pathlib import Path
from deaths import Death, Operations
folder = Path(sys.argv[1])
hook = Operations(folder, Death(operation=sys.argv[2], kept=float(sys.argv[3])))
sys.addaudithook(hook)
for number in (1, 2):
    part = folder / f".{number}.part"
    part.write_text("12345678")
    part.replace(folder / f"{number}.txt")
(folder / "2.txt").unlink()
"""


@pytest.mark.parametrize(
    ("operation", "kept", "left"),
    [
        ("open .#.part", 1.0, {}),
        ("rename .#.part #.txt", 1.0, {".1.part": "12345678"}),
        ("rename .#.part #.txt", 0.5, {".1.part": "1234"}),
        ("rename .#.part #.txt", 0.0, {".1.part": ""}),
        ("remove #.txt", 0.5, {"1.txt": "12345678", "2.txt": "12345678"}),
    ],
)
def test_a_death_comes_where_it_should(
    tmp_path: Path, operation: str, kept: float, left: dict[str, str]
) -> None:
    command = [sys.executable, "-c", WRITING, str(tmp_path), operation, str(kept)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    assert subprocess.run(command, env=environment).returncode == -signal.SIGKILL
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == left


def test_reading_is_no_operation(tmp_path: Path) -> None:
    hook = Operations(tmp_path, None)
    path = str(tmp_path / "12" / "a.txt")
    hook("open", (path, "r", os.O_RDONLY))
    hook("open", ("/elsewhere/a.txt", "w", os.O_WRONLY))
    hook("os.mkdir", (str(tmp_path / "12"), 0o777, -1))
    hook("open", (path, "w", os.O_WRONLY))
    assert hook.seen == ["mkdir #", "open #/a.txt"]
    assert str(Death(operation="mkdir #")) == "SIGKILL before 'mkdir #' no. 1"

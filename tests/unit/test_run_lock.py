"""One run per folder: refused while another lives, taken over from one that is gone."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from toy_runs import metrics, one_stage, run
from toys import environment

from rlhf_kit.errors import DataError
from rlhf_kit.run_lock import DEAD, LOCK, locked

HOLD = """
import sys, time
from pathlib import Path
from rlhf_kit.run_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""

# Waits for the start, then holds the folder for a moment and writes down when.
CROWD = """
import os, sys, time
from pathlib import Path
from rlhf_kit.errors import DataError
from rlhf_kit.run_lock import locked
folder, begin = Path(sys.argv[1]), float(sys.argv[2])
time.sleep(max(0.0, begin - time.time()))
try:
    with locked(folder):
        with (folder / "book.txt").open("a") as book:
            book.write(f"in {os.getpid()}\\n")
            book.flush()
            time.sleep(0.3)
            book.write(f"out {os.getpid()}\\n")
except DataError:
    sys.exit(3)
"""


def start(code: str, *inputs: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, inputs)]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)


def holder(folder: Path) -> subprocess.Popen[str]:
    process = start(HOLD, folder, 60)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_another_process_is_named_and_its_death_noticed(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        says = rf"{tmp_path}: another run writes here: process {process.pid} on \S+, since 20"
        with pytest.raises(DataError, match=says), locked(tmp_path):
            pass
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / LOCK).is_file()  # nobody cleaned up
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_refused_in_one_line(toy_model: Path, tmp_path: Path) -> None:
    recipe, out = one_stage(tmp_path / "project", toy_model, steps=1), tmp_path / "out"
    command = [sys.executable, "-m", "rlhf_kit", "run", str(recipe), "--out", str(out)]
    out.mkdir()
    process = holder(out)
    try:
        found = subprocess.run(command, env=environment(), capture_output=True, text=True)
        assert found.returncode == 3
        (line,) = [line for line in found.stderr.splitlines() if line.startswith("error:")]
        assert f"process {process.pid}" in line
        assert sorted(path.name for path in out.iterdir()) == [LOCK]
    finally:
        process.kill()
        process.wait()
    run(recipe, out)
    assert len(metrics(out)) == 1
    assert not (out / LOCK).exists()


def test_twice_in_one_process(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(DataError, match=f"process {os.getpid()}"):  # noqa: SIM117
        with locked(tmp_path):
            pass


def written(folder: Path, age: float, **changes: Any) -> None:
    """A lock as another process would have left it, ``age`` seconds after its last sign of life."""
    with locked(folder):
        own = json.loads((folder / LOCK).read_text())
    (folder / LOCK).write_text(json.dumps(own | changes))
    os.utime(folder / LOCK, (time.time() - age,) * 2)


def taken_over(folder: Path) -> None:
    """The lock that lies there is replaced by one of this process, and given back."""
    before = json.loads((folder / LOCK).read_text())["token"]
    with locked(folder):
        found = json.loads((folder / LOCK).read_text())
        assert (found["pid"], found["token"] != before) == (os.getpid(), True)
    assert not (folder / LOCK).exists()


def test_a_number_that_is_used_again_is_no_other_run(tmp_path: Path) -> None:
    written(tmp_path, 0, started="1")
    taken_over(tmp_path)


@pytest.mark.parametrize(("age", "lives"), [(0, True), (DEAD - 60, True), (DEAD + 1, False)])
def test_of_another_machine_the_signs_of_life_count(
    tmp_path: Path, age: float, lives: bool
) -> None:
    written(tmp_path, age, host="elsewhere pid:[1]", boot="another")
    if lives:
        says = r"process \d+ on elsewhere, since"
        with pytest.raises(DataError, match=says), locked(tmp_path):
            pass
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    else:
        with locked(tmp_path):
            pass


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_damaged_lock_holds_nobody_back(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK).write_text(text)
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_container_that_starts_again_need_not_wait(tmp_path: Path) -> None:
    """Under the same kernel the lock has ended with its process, whatever the table of those."""
    written(tmp_path, 0, host="the-same pid:[1]")
    taken_over(tmp_path)


def test_signs_of_life_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf_kit.run_lock.BEAT", 0.05)
    with locked(tmp_path):
        os.utime(tmp_path / LOCK, (0, 0))
        end = time.monotonic() + 20
        while (tmp_path / LOCK).stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.02)
        assert (tmp_path / LOCK).stat().st_mtime > 0


def test_what_was_taken_over_is_left_alone(tmp_path: Path) -> None:
    """A process that slept too long does not remove the lock of who came after it."""
    with locked(tmp_path):
        (tmp_path / LOCK).write_text(json.dumps({"host": "elsewhere", "pid": 7, "started": "1"}))
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == 7


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_at_once_one_holds_it_at_a_time(tmp_path: Path, stale: bool) -> None:
    if stale:
        written(tmp_path, 0, started="1")
    begin = time.time() + 2.5
    crowd = [start(CROWD, tmp_path, begin) for _ in range(8)]
    codes = [process.wait(timeout=120) for process in crowd]
    assert set(codes) <= {0, 3} and 0 in codes
    lines = [line.split() for line in (tmp_path / "book.txt").read_text().splitlines()]
    assert [word for word, _ in lines] == ["in", "out"] * codes.count(0)
    assert all(a[1] == b[1] for a, b in zip(lines[::2], lines[1::2], strict=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["book.txt"]


def test_no_trace_is_left(tmp_path: Path) -> None:
    with locked(tmp_path / "runs" / "mine"):
        assert (tmp_path / "runs" / "mine" / LOCK).is_file()
    assert list(tmp_path.iterdir()) == []


def test_where_the_kernel_has_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*inputs: Any) -> None:
        raise OSError(errno.ENOLCK, "not here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path), pytest.raises(DataError, match="another run"):  # noqa: SIM117
        with locked(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DataError, match="a file is where a folder should be"),
        locked(tmp_path / "file" / "run"),
    ):
        pass

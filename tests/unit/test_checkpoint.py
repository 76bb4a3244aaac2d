"""Checkpoints are whole or absent: a full disk, an error or a kill leaves the old file intact."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from safetensors.torch import load_file

from rlhf_kit.engine.checkpoint import (
    load_checkpoint,
    save_checkpoint,
    save_tensors,
    write_atomically,
    write_json,
)
from rlhf_kit.errors import DataError


class Part:
    """Something with state."""

    def __init__(self, value: float) -> None:
        self.value = torch.full((3,), value)

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


def fails_midway(error: BaseException) -> Any:
    def write(file: BinaryIO) -> None:
        file.write(b"half of the new con")
        file.flush()
        raise error

    return write


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "last.pt"
    path.write_bytes(b"old content")
    return path


def test_a_full_disk_leaves_the_old_file(old: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(DataError, match="no space left on the disk; what was written before is in"):
        write_atomically(old, fails_midway(full))
    assert old.read_bytes() == b"old content"
    assert list(old.parent.iterdir()) == [old]  # the half-written file is gone


def test_torch_reports_a_full_disk_in_its_own_way(old: Path) -> None:
    error = RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
    with pytest.raises(DataError, match="no space left"):
        write_atomically(old, fails_midway(error))
    assert old.read_bytes() == b"old content"


@pytest.mark.parametrize(
    "error",
    [ConnectionError(errno.ECONNRESET, "reset"), RuntimeError("shape mismatch"), KeyError("x")],
)
def test_other_errors_pass_and_leave_the_old_file(old: Path, error: Exception) -> None:
    with pytest.raises(type(error)):
        write_atomically(old, fails_midway(error))
    assert old.read_bytes() == b"old content"


def test_a_kill_leaves_the_old_file(old: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_atomically(old, fails_midway(KeyboardInterrupt()))
    assert old.read_bytes() == b"old content"
    write_atomically(old, lambda file: file.write(b"new"))
    assert old.read_bytes() == b"new"


def test_a_checkpoint_saved_on_a_full_disk_still_loads_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoints" / "last.pt"
    save_checkpoint(path, 4, {"part": Part(1.0)})

    def full(content: Any, file: BinaryIO) -> None:
        fails_midway(OSError(errno.ENOSPC, "No space left on device"))(file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(DataError):
            save_checkpoint(path, 5, {"part": Part(2.0)})
    part = Part(0.0)
    assert load_checkpoint(path, {"part": part}) == 4
    assert part.value.tolist() == [1.0] * 3


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, 7, {"a": Part(1.5), "b": Part(-2.0)})
    a, b = Part(0.0), Part(0.0)
    assert load_checkpoint(path, {"a": a, "b": b}) == 7
    assert (a.value.tolist(), b.value.tolist()) == ([1.5] * 3, [-2.0] * 3)


def test_other_parts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, 7, {"a": Part(1.0)})
    with pytest.raises(DataError, match=r"holds state of \['a'\], but the stage has \['a', 'b'\]"):
        load_checkpoint(path, {"a": Part(0.0), "b": Part(0.0)})


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    torch.save({"step": 1, "state": {"a": Path("anything that is not plain data")}}, path)
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        load_checkpoint(path, {"a": Part(0.0)})


def test_json_and_tensors(tmp_path: Path) -> None:
    write_json(tmp_path / "deep" / "x.json", {"a": "größer"})
    assert json.loads((tmp_path / "deep" / "x.json").read_text()) == {"a": "größer"}
    weights = {"w": torch.arange(6.0).view(2, 3).t()}  # not contiguous
    save_tensors(tmp_path / "w.safetensors", weights)
    assert torch.equal(load_file(tmp_path / "w.safetensors")["w"], weights["w"])

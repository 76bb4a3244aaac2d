"""Checkpoints and records whose bytes were changed at random: refused, or as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from odd import at, paths, values

from rlhf_kit.engine.checkpoints import Checkpoints
from rlhf_kit.errors import RlhfKitError
from rlhf_kit.recipe.folders import stage_folder
from rlhf_kit.run_folder import FORMAT, sealed
from rlhf_kit.stage_options import CheckpointOptions
from rlhf_kit.stage_record import StageRecord

pytestmark = pytest.mark.fuzz


class Part:
    """Something with state."""

    def __init__(self) -> None:
        self.x = torch.arange(24.0)

    def state_dict(self) -> dict[str, Any]:
        return {"x": self.x, "name": "part"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.x = state["x"]


def finished_run(run: Path) -> Path:
    """A run with one finished stage, as far as its records go; the folder of the stage."""
    stage = run / "stages" / "sft"
    stage.mkdir(parents=True)
    record = {"format": FORMAT, "stage": "sft", "produces": "policy", "finished": True}
    (stage / "stage.json").write_text(json.dumps(sealed(record | {"fingerprint": "made"})))
    names = {"fingerprints": {"sft": "made"}, "produces": {"sft": "policy"}}
    manifest = {"format": FORMAT, "run": "made", "attempts": []} | names
    (run / "manifest.json").write_text(json.dumps(sealed(manifest)))
    return stage


def damaged(content: bytes, data: st.DataObject) -> bytes:
    """``content`` cut short, with other bytes, or other content altogether."""
    found = bytearray(content)
    what = data.draw(st.sampled_from(("cut", "bytes", "empty", "other", "more")))
    if what == "cut":
        return content[: data.draw(st.integers(0, len(content) - 1))]
    if what == "bytes":
        for _ in range(data.draw(st.integers(1, 3))):
            found[data.draw(st.integers(0, len(found) - 1))] ^= data.draw(st.integers(1, 255))
        return bytes(found)
    if what == "more":
        return content + data.draw(st.binary(min_size=1, max_size=9))
    return b"" if what == "empty" else data.draw(st.binary(max_size=64))


@given(data=st.data())
def test_checkpoints(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("checkpoints")
    kept = Checkpoints(folder, CheckpointOptions())
    for step in (1, 2):
        part = Part()
        part.x = part.x + step
        kept.save(step, {"part": part})
    some = sorted(folder.iterdir())
    for path in data.draw(st.lists(st.sampled_from(some), min_size=1, max_size=2, unique=True)):
        path.write_bytes(damaged(path.read_bytes(), data))
    found, said = Part(), list[str]()
    try:
        step = Checkpoints(folder, CheckpointOptions()).load({"part": found}, said.append)
    except RlhfKitError as error:
        assert len(str(error).splitlines()) == 1
        return
    assert torch.equal(found.x, torch.arange(24.0) + step), "what is loaded is what was saved"
    assert step == 2 or said


@given(data=st.data())
def test_records(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    run = tmp_path_factory.mktemp("run")
    stage = finished_run(run)
    path = data.draw(st.sampled_from((stage / "stage.json", run / "manifest.json")))
    if data.draw(st.booleans()):
        record = json.loads(path.read_text())
        *above, key = data.draw(st.sampled_from(paths(record)))
        at(record, tuple(above))[key] = data.draw(values)
        text = json.dumps(record, default=str)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
    else:
        path.write_bytes(damaged(path.read_bytes(), data))
    for folder in (run, stage):
        try:
            assert stage_folder(folder, "policy") == stage
        except RlhfKitError as error:
            assert len(str(error).splitlines()) == 1
    try:
        record = StageRecord.read("sft", stage, "policy", {"a": "b"}, {"micro_batch": 8})
        assert record.summary is not None and record.seconds >= 0
        assert record.changes() and record.execution_changes() is not None
    except RlhfKitError as error:
        assert len(str(error).splitlines()) == 1

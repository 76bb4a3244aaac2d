"""Every damaged run folder of the corpus is refused by the next run, and left as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cases import HERE
from test_corpus import first_error, said
from toys import write_toy_recipe

from rlhf_kit.engine.checkpoints import Checkpoints
from rlhf_kit.errors import DataError
from rlhf_kit.recipe import open_recipe
from rlhf_kit.run import run_recipe
from rlhf_kit.stage_options import CheckpointOptions

CASES = [
    case | {"damage": damage}
    for case in yaml.safe_load((HERE / "damaged.yaml").read_text())
    for damage in case["damage"]
]


@pytest.fixture(scope="session")
def project(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    return write_toy_recipe(folder, toy_model, "hydra", ppo={"steps": 1})


@pytest.fixture(scope="session")
def finished(project: Path) -> Path:
    out = project.parent / "run"
    resolved, loaded, _ = open_recipe(project)
    run_recipe(resolved, loaded, out=out, plain=True)
    return out


def damage(path: Path, how: str) -> None:
    """One way in which a file is not what it was."""
    if path.is_dir():
        shutil.rmtree(path)
        path.write_text("not a folder")
        return
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = bytes([content[middle] ^ 1])
    other = {
        "empty": b"",
        "cut": content[:middle],
        "garbage": bytes(range(256)) * 4,
        "flip": content[:middle] + flipped + content[middle + 1 :],
        "list": b"[1, 2]\n",
        "deep": b"[" * 100_000,
        "latin-1": b'{"caf\xe9": 1}\n',
        "edited": content.replace(b"0", b"1").replace(b"2", b"3"),
    }
    if how == "format":
        path.write_text(json.dumps(json.loads(content) | {"format": 1}))
    elif how == "gone":
        path.unlink()
    elif how == "folder":
        path.unlink()
        path.mkdir()
    else:
        assert other[how] != content
        path.write_bytes(other[how])


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['file']}/{case['damage']}")
def test_it_is_refused(case: dict[str, Any], project: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    damage(out / case["file"], case["damage"])
    before = everything(out)
    reads = case.get("reads", "ppo.kl.coef=0.3")
    result, _ = said(["run", str(project), reads, "--out", str(out)])
    ended = result.exception is None or isinstance(result.exception, SystemExit)
    assert ended, f"{type(result.exception).__name__}: {result.exception}"
    assert result.exit_code == case["exit"], result.output
    assert case["says"] in first_error(result, out)
    if case["exit"] != 0:
        assert everything(out) == before


CHECKPOINTS = {
    ("00000002.pt",): ("empty", "cut", "garbage", "flip", "gone"),
    ("00000002.json",): ("empty", "cut", "list", "latin-1", "edited"),
    ("00000001.pt", "00000002.pt"): ("empty", "cut", "garbage", "flip", "gone"),
    ("00000001.json", "00000002.json"): ("empty", "list", "edited"),
}


class Part:
    """Something with state."""

    def __init__(self, step: int) -> None:
        self.x = torch.arange(24.0) + step

    def state_dict(self) -> dict[str, Any]:
        return {"x": self.x}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.x = state["x"]


@pytest.mark.parametrize(
    ("files", "how"), [(files, how) for files, ways in CHECKPOINTS.items() for how in ways]
)
def test_a_checkpoint(files: tuple[str, ...], how: str, tmp_path: Path) -> None:
    """The one before serves; where none is whole, a line says what to remove."""
    kept = Checkpoints(tmp_path, CheckpointOptions())
    for step in (1, 2):
        kept.save(step, {"part": Part(step)})
    for name in files:
        damage(tmp_path / name, how)
    found, lines = Part(0), list[str]()
    again = Checkpoints(tmp_path, CheckpointOptions())
    if len(files) == 1:
        assert again.load({"part": found}, lines.append) == 1
        assert torch.equal(found.x, Part(1).x)
        assert len(lines) == 1 and "00000002.pt is damaged" in lines[0]
    else:
        with pytest.raises(DataError, match="no checkpoint in it is whole; remove that folder"):
            again.load({"part": found}, lines.append)


def test_there_are_enough() -> None:
    assert len(CASES) + sum(map(len, CHECKPOINTS.values())) >= 70

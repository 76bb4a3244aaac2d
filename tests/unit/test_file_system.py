"""What a file system refuses: one line, exit code 3, and what was there before is intact."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from toy_runs import metrics, one_stage
from watchers import write_watcher

from rlhf_kit.cli.lazy import ErrorGroup
from rlhf_kit.cli.main import main
from rlhf_kit.engine.checkpoint import write_atomically, write_json
from rlhf_kit.engine.metrics import MetricsFile
from rlhf_kit.errors import DataError
from rlhf_kit.run_lock import locked

NOBODY = 65534


def rlhf_kit(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def line(result: Result) -> str:
    """The one line of a refusal."""
    assert result.exit_code == 3, (result.stderr, result.exception)
    (found,) = [text for text in result.stderr.splitlines() if text.startswith("error: ")]
    assert found == result.stderr.splitlines()[-1]
    return found.removeprefix("error: ")


def content(folder: Path) -> dict[str, bytes | None]:
    """Every file, and every folder."""
    found = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in found}


@pytest.fixture
def recipe(toy_model: Path, tmp_path: Path) -> Path:
    return one_stage(tmp_path / "project", toy_model, "sft")


def mount(*args: str) -> None:
    try:
        done = subprocess.run(["mount", *args], capture_output=True)
    except FileNotFoundError:
        pytest.skip("no command mount")
    if done.returncode != 0:
        pytest.skip("may not mount a file system")


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Make a folder read-only for whoever enters it from now on, as root too."""
    mounted: list[Path] = []

    def make(folder: Path) -> None:
        mount("--bind", str(folder), str(folder))
        mounted.append(folder)
        mount("-o", "remount,bind,ro", str(folder))

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def nobody() -> Iterator[None]:
    """Without the rights of root, whom no permission holds back."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody can enter; those of pytest are its user's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(folder)


def test_a_read_only_file_system(recipe: Path, tmp_path: Path, read_only: Any) -> None:
    folder = tmp_path / "disk"
    (folder / "before").mkdir(parents=True)
    read_only(folder)
    for out in ("run", "before"):
        said = line(rlhf_kit("run", recipe, "--out", folder / out))
        assert said.startswith(f"{folder / out}")
        assert "the file system is read-only; choose another place" in said
    assert content(folder) == {"before": None}


TURNS = """
def step_ended(self, stage, step, metrics):
    import subprocess
    if step == 1:
        subprocess.run(["mount", "--bind", {folder!r}, {folder!r}], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", {folder!r}], check=True)
"""


@pytest.mark.parametrize("memory", ["full", "hydra", "lora"])
@pytest.mark.parametrize("place", ["stages/ppo", "."])
def test_a_file_system_that_turns_read_only(
    toy_model: Path, tmp_path: Path, memory: str, place: str
) -> None:
    """As one does whose disk fails: afterwards the run goes on, and is as it would have been."""
    recipe = one_stage(tmp_path / "project", toy_model, "ppo", memory)
    assert rlhf_kit("run", recipe, "--out", tmp_path / "whole").exit_code == 0
    out = tmp_path / "out"
    (out / "stages/ppo").mkdir(parents=True)
    mount("--bind", str(out), str(out))  # whether that is allowed
    subprocess.run(["umount", str(out)], check=True)
    plugin, turned = tmp_path / "turning.py", (out / place).resolve()
    watched = write_watcher(plugin, TURNS.format(folder=str(turned)))
    try:
        result = rlhf_kit(
            "run", recipe, watched, "checkpoint.steps=1", "--out", out, "--plugin", plugin
        )
    finally:
        subprocess.run(["umount", "-l", str(turned)], check=True)
    said = line(result)
    assert "the file system is read-only" in said
    assert str(turned) in said
    assert not list(out.rglob("*.part"))
    result = rlhf_kit("run", recipe, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert metrics(out) == metrics(tmp_path / "whole")


@pytest.mark.parametrize("out", ["closed/run", "closed", "hidden/run", "open"])
def test_no_permission(toy_model: Path, place: Path, out: str) -> None:
    """To make the run folder, to write into it, to look at it, or to write into a stage's."""
    model = shutil.copytree(toy_model, place / "model")
    (model / "model.safetensors").chmod(0o644)
    recipe = one_stage(place / "project", model, "sft")
    for name, mode in {"closed": 0o555, "hidden": 0o000, "open": 0o777}.items():
        (place / name).mkdir()
        (place / name).chmod(mode)
    (place / "open/stages/sft").mkdir(parents=True)
    for path in (place / "open/stages/sft", place / "open/stages"):
        path.chmod(0o555)
    with nobody():
        said = line(rlhf_kit("run", recipe, "--out", place / out))
    assert said.startswith((f"{place / out}", f"stage 'sft': {place / out}"))
    assert "may not be used (permission denied)" in said
    assert not [*(place / out).rglob("*.part"), *(place / out).glob("*/*/*")]


FOLDERS = ("", "stages", "stages/sft", "stages/sft/checkpoints", "superseded", "observers")
FILES = ("metrics.jsonl", "recipe.yaml", "manifest.json", "summary.json", ".lock")


@pytest.mark.parametrize("name", FOLDERS)
def test_a_file_where_a_folder_should_be(recipe: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text("of somebody")
    before = content(out.parent)
    said = line(rlhf_kit("run", recipe, "--out", out))
    assert said.startswith(f"{out / name}: a file is where a folder should be; move it away")
    assert content(out.parent) == before


@pytest.mark.parametrize("name", [*FILES, "stages/sft/stage.json"])
def test_a_folder_where_a_file_should_be(recipe: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    (out / name).mkdir(parents=True)
    before = content(out)
    said = line(rlhf_kit("run", recipe, "--out", out))
    assert said.startswith(f"{out / name}: a folder is where a file should be; move it away")
    assert content(out) == before


def test_other_places_that_cannot_be(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = line(rlhf_kit("run", recipe, "--out", tmp_path / "file/run"))
    assert said.startswith(f"{tmp_path / 'file/run'}: a file is where a folder should be")
    said = line(rlhf_kit("run", recipe, "--out", tmp_path / ("x" * 300)))
    assert "the name is too long for this file system" in said
    line(rlhf_kit("run", recipe, "--out", "/proc/nowhere/run"))


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "folder/record.json"
    write_json(path, {"old": 1})
    return path


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESTALE])
def test_a_rename_that_is_done_and_reported_as_failed(
    old: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A server that has done it, and whose answer was lost, does not find the file again."""
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        real(source, target)
        raise OSError(number, os.strerror(number), str(source))

    monkeypatch.setattr(os, "replace", replace)
    write_json(old, {"new": 12345})
    assert old.read_text() == '{\n  "new": 12345\n}\n'


def nothing(source: Any, target: Any) -> None:
    """Done, it says, and the old file is still there."""
    Path(source).unlink()


def stale(source: Any, target: Any) -> None:
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(source))


def denied(source: Any, target: Any) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(source))


@pytest.mark.parametrize(
    ("lost", "says"),
    [(nothing, "the file system has lost it"), (stale, "has lost it"), (denied, "may not be used")],
)
def test_a_rename_that_is_lost(
    old: Path, monkeypatch: pytest.MonkeyPatch, lost: Callable[..., None], says: str
) -> None:
    before = content(old.parent)
    monkeypatch.setattr(os, "replace", lost)
    with pytest.raises(DataError, match=rf"{old}: .*{says}"):
        write_json(old, {"new": 12345})
    assert content(old.parent) == before
    fresh = old.with_name("fresh.json")
    with pytest.raises(DataError, match=says):
        write_json(fresh, {})
    assert content(old.parent) == before


def test_metrics_that_cannot_be_written(tmp_path: Path) -> None:
    """Every write to this device fails as on a full disk."""
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(DataError, match=rf"{tmp_path}/metrics\.jsonl: no space left on the disk"):
        MetricsFile(tmp_path / "metrics.jsonl", {}).write("sft", 0, {})
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="folder: a folder is where a file should be"):
        MetricsFile(tmp_path / "folder", {}).write("sft", 0, {})
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_checkpoint_that_cannot_be_written(tmp_path: Path, old: Path) -> None:
    with pytest.raises(DataError, match=r"record\.json/x\.pt: a file is where a folder should be"):
        write_atomically(old / "x.pt", lambda file: file.write(b"x"))
    with pytest.raises(DataError, match="folder: a folder is where a file should be"):
        write_atomically(old.parent, lambda file: file.write(b"x"))
    assert content(tmp_path) == {"folder": None, "folder/record.json": old.read_bytes()}


def test_a_lock_that_cannot_be_removed_does_not_hide_the_error(
    tmp_path: Path, read_only: Any
) -> None:
    with pytest.raises(ValueError, match="the real one"), locked(tmp_path / "run"):
        read_only(tmp_path / "run")
        raise ValueError("the real one")


def outermost(error: BaseException) -> Result:
    @click.group(cls=ErrorGroup, lazy={})
    def group() -> None:
        raise error

    group.get_command = lambda ctx, name: click.Command(name)  # type: ignore[method-assign]
    return CliRunner().invoke(group, ["verb"])


def test_what_reaches_the_command_line() -> None:
    said = line(outermost(OSError(errno.EROFS, "x", "a.bin")))
    assert said.startswith("a.bin: the file system is read-only")
    assert line(outermost(OSError(errno.EDQUOT, "x"))).startswith("no space left on the disk")

"""Every bad input of the corpus is refused: with its exit code, in a clear line, in its time."""

from __future__ import annotations

import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import yaml
from cases import GROUPS, cases, project
from click.testing import CliRunner, Result
from toys import write_toy_recipe

from rlhf_kit.cli.main import main
from rlhf_kit.recipe.schema import TOP_LEVEL

CASES = [case for group in GROUPS for case in cases(group)]
LIMIT = 2.0  # seconds that `check` may take, of this process: other processes share the machine
HANG = 20  # seconds by the clock


@pytest.fixture(scope="session")
def toy(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The toy project, and the values of its recipe."""
    folder = tmp_path_factory.mktemp("corpus")
    recipe = write_toy_recipe(folder / "project", toy_model, "hydra")
    return folder / "project", yaml.safe_load(recipe.read_text())


class Hang(BaseException):
    """Nothing in between takes it for an error of its own."""


@contextmanager
def no_hang() -> Iterator[None]:
    def stop(signum: int, frame: FrameType | None) -> None:
        raise Hang(f"still busy after {HANG} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANG)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def said(command: list[str]) -> tuple[Result, float]:
    """What the command line says in this process, and the seconds it worked."""
    begin = time.process_time()
    with no_hang():
        result = CliRunner().invoke(main, command, prog_name="rlhf-kit")
    return result, time.process_time() - begin


def first_error(result: Result, here: Path) -> str:
    """The first line that says what is wrong, without what differs from run to run."""
    lines = result.stderr.replace(str(here.resolve()), "HERE").splitlines()
    found = [line for line in lines if line.lower().startswith(("error: ", "warning: "))]
    return (found or [""])[0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_it_is_refused(
    case: dict[str, Any],
    toy: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = tmp_path / "p"
    shutil.copytree(toy[0], here)
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(here)
    command = project(case, toy[1], here)
    result, seconds = said(command)
    ended = result.exception is None or isinstance(result.exception, SystemExit)
    assert ended, f"{type(result.exception).__name__}: {result.exception}"
    assert "Traceback" not in result.stderr
    assert result.exit_code == case.get("exit", 2), result.output
    assert seconds < LIMIT or "run" in command[0]
    line = first_error(result, here)
    assert case.get("says", "") in line
    assert len(line) < 1000
    if result.exit_code != 0:
        assert case["says"], "a case says what is expected"
        assert result.stdout == ""
        placed(line, here / "toy.yaml")


def placed(line: str, recipe: Path) -> None:
    """A line with a place in the recipe names the line of that key, or of a block around it."""
    found = re.match(r"error: toy\.yaml:(\d+): (\S+?): ", line)
    if found is None or not recipe.is_file() or "missing; " in line:
        return
    at = recipe.read_bytes().decode("utf-8", "replace").splitlines()[int(found[1]) - 1]
    words = [re.escape(word) for word in found[2].split(".")]
    if words[0] in TOP_LEVEL:
        key = rf"""['"]?({"|".join(words)})['"]?\s*:"""
        assert re.search(rf"({key})|(^\s*- )|(^\s*<<)", at), (line, at)


def test_there_are_enough() -> None:
    assert len(CASES) >= 250
    assert len({case["id"] for case in CASES}) == len(CASES)

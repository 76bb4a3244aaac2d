"""Fixtures of `make chaos`: one forking process, one tally, models and pipelines."""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

if sys.platform != "linux":
    collect_ignore = ["test_chaos.py"]  # processes are waited for by descriptor

_TALLY = pytest.StashKey["object"]()


@pytest.fixture(scope="session")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    from forker import Forker

    found = Forker(tmp_path_factory.mktemp("forker"))
    yield found
    found.close()


@pytest.fixture(scope="session")
def tally(request: pytest.FixtureRequest) -> object:
    from campaign import Tally

    return request.config.stash.setdefault(_TALLY, Tally())


@pytest.fixture
def campaign(forker: object, tally: object, tmp_path: Path) -> Iterator[object]:
    from campaign import Campaign

    yield Campaign(forker, tmp_path, tally)  # type: ignore[arg-type]
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


@pytest.fixture
def draw(request: pytest.FixtureRequest) -> random.Random:
    """A test alone draws what it draws among others."""
    from campaign import SEED

    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture(scope="session")
def places(
    forker: object, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str, str], object]:
    """The pipeline of a model, a memory and a kind, in whose places runs are cut."""
    from places import Pipeline

    @cache
    def of(model: str, memory: str, kind: str) -> object:
        folder = tmp_path_factory.mktemp(f"{model}-{memory}")
        weights = request.getfixturevalue(f"{model}_model")
        return Pipeline(forker, folder, weights, f"{model}/{memory}", kind)  # type: ignore[arg-type]

    return of


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    found = terminalreporter.config.stash.get(_TALLY, None)
    if found is not None:
        from campaign import SEED

        terminalreporter.write_line(f"chaos: seed {SEED}: {found}")

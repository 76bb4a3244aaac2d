"""A faulty component is stopped at build or at its first call, by name and line, in one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from faults import FAULTS, Fault

from rlhf_kit.cli.main import main
from rlhf_kit.interfaces import SEAMS
from rlhf_kit.plugins import load_plugins
from rlhf_kit.testing import toy_recipe

PLUGIN = """\
import math
import sys
from dataclasses import replace

import torch

from rlhf_kit import Component, hookimpl
from rlhf_kit.types import Advantages, LossOutput

{code}


@hookimpl
def rlhf_components():
    yield Component("{seam}", "faulty", "{target}")
"""


def written(fault: Fault, folder: Path) -> list[str]:
    """Recipe, data and plugin of a run with ``fault`` in it; the words of the command."""
    values = yaml.safe_load(toy_recipe(folder, fault.stage).read_text())
    *places, last = fault.key.split(".")
    block = values
    for place in places:
        block = block.setdefault(place, {})
    block[last] = {"use": "faulty"}
    recipe = folder / "toy.yaml"
    recipe.write_text(yaml.safe_dump(values, sort_keys=False))
    plugin = folder / "faulty.py"
    plugin.write_text(PLUGIN.format(code=fault.code, seam=fault.seam, target=fault.target))
    return ["run", str(recipe), "--plugin", str(plugin), "--out", str(folder / "out")]


def line_of(recipe: Path) -> int:
    """Where the block of ``use: faulty`` begins."""
    lines = recipe.read_text().splitlines()
    (found,) = [i for i, line in enumerate(lines) if line.strip() == "use: faulty"]
    return found


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_a_fault_is_told_in_one_line(
    fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = written(fault, tmp_path)
    result: Result = CliRunner().invoke(main, words)
    assert result.exit_code == fault.exit_code, result.output
    assert "Traceback" not in result.output
    line = line_of(tmp_path / "toy.yaml")
    begin = f"toy.yaml:{line}: {fault.key}: {fault.seam} 'faulty'"
    said = [text for text in result.output.splitlines() if begin in text]
    assert len(said) == 1, result.output
    assert re.search(f"'faulty'( of package 'faulty')?.*{fault.says}", said[0]), said[0]


def test_every_seam_has_faults() -> None:
    """And every seam that a component fills is held against an interface."""
    filled = {component.seam for *_, component in load_plugins({}).components}
    assert filled <= set(SEAMS)
    assert set(SEAMS) == {fault.seam for fault in FAULTS}
    assert len(FAULTS) >= 50

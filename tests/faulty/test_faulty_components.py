"""A faulty component is stopped at build or at its first call, by name and line, in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from faults import FAULTS, Fault
from toys import write_data

from rlhf_kit.cli.main import main
from rlhf_kit.interfaces import SEAMS
from rlhf_kit.plugins import load_plugins

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

RATE = {"learning_rate": 1e-3, "schedule": "constant", "warmup_steps": 0}
SAMPLING = {"max_new_tokens": 3, "batch_size": 4}
STAGES: dict[str, dict[str, Any]] = {
    "ppo": {
        "use": "ppo_ptx",
        "reward": {"use": "python", "path": "reward.py"},
        "steps": 1,
        "rollout_batch": 2,
        "minibatch": 2,
        "micro_batch": 2,
        "gate": {"check": False},
        "sampling": SAMPLING,
        "optimizer": RATE,
    },
    "sft": {"use": "sft", "epochs": 1, "batch_size": 8, "optimizer": RATE},
    "collect": {
        "use": "collect",
        "completions": 2,
        "labeler": {"use": "scripted", "reward": {"use": "python", "path": "reward.py"}},
        "sampling": SAMPLING,
    },
    "reward_model": {"use": "reward_model", "comparisons": "comparisons", "optimizer": RATE},
    "dpo": {"use": "dpo", "comparisons": "comparisons", "optimizer": RATE},
    "kto": {"use": "kto", "comparisons": "comparisons", "optimizer": RATE},
    "mine": {},
}
DATA = {"ppo": "prompts", "sft": "demonstrations", "collect": "prompts", "mine": None}
ADDED = {"stages.ppo.ptx.controller": {"text": "text", "length": 32}}


def written(fault: Fault, model: Path, folder: Path) -> list[str]:
    """Recipe, data and plugin of a run with ``fault`` in it; the words of the command."""
    write_data(folder)
    answers = [
        {"prompt": f"{i}?", "completions": ["Yes.", "No!"], "ranks": [0, 1], "split": split}
        for i, split in enumerate(["train"] * 4 + ["validation"] * 2)
    ]
    (folder / "comparisons.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    (folder / "model").symlink_to(model)
    stage = fault.stage
    named = DATA.get(stage, "comparisons")
    values: dict[str, Any] = {
        "model": {"use": "pretrained", "name": "model"},
        "memory": {"use": "full", "dtype": "float32", "device": "cpu"},
        "data": {named: {"use": named, "path": f"{named}.jsonl"}} if named else {},
        "stages": {stage: dict(STAGES[stage])},
    }
    *places, last = fault.key.split(".")
    if ".ptx." in fault.key:
        values["data"]["text"] = {"use": "text", "path": "text.txt"}
        values["stages"]["ppo"]["ptx"] = {"text": "text", "length": 32, "per_episode": 1.0}
    block = values
    for place in places:
        block[place] = dict(block.get(place, {}))
        block = block[place]
    block[last] = {"use": "faulty"}
    recipe = folder / "toy.yaml"
    recipe.write_text(yaml.safe_dump(values, sort_keys=False))
    plugin = folder / "faulty.py"
    plugin.write_text(PLUGIN.format(code=fault.code, seam=fault.seam, target=fault.target))
    return ["run", str(recipe), "--plugin", str(plugin), "--out", str(folder / "out"), "--plain"]


def line_of(recipe: Path, key: str) -> int:
    """Where ``use: faulty`` stands, or what is built anew by it."""
    lines = recipe.read_text().splitlines()
    (found,) = [i for i, line in enumerate(lines, start=1) if line.strip() == "use: faulty"]
    return found - 1


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_a_fault_is_told_in_one_line(
    fault: Fault, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = written(fault, toy_model, tmp_path)
    result: Result = CliRunner().invoke(main, words)
    assert result.exit_code == fault.exit_code, result.output
    assert "Traceback" not in result.output
    line = line_of(tmp_path / "toy.yaml", fault.key)
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

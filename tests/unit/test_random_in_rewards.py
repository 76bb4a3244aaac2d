"""A reward that draws from the global generators draws the same after a run was cut, in any stage.

That holds where nothing else moves those generators in a way that a continuation repeats or leaves
out: so none of what the built-in stages do in a step may move them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml
from safetensors.torch import load_file
from toy_runs import EVERY_STEP, summary
from toys import merged, toy_recipe_values, write_toy_recipe

from rlhf_kit.engine.seeding import GeneratorState
from rlhf_kit.engine.stage_run import StageExecution
from rlhf_kit.recipe import open_recipe
from rlhf_kit.run import run_recipe

MEMORIES = ("hydra", "lora", "full")
# Of every generator, and another number of draws in every call.
RANDOM = """
import os, random
import numpy, torch

calls = 0


def reward(responses):
    global calls
    calls += 1
    if calls == int(os.environ.get("CUT_AT", 0)):
        raise KeyboardInterrupt
    own = [torch.rand(()).item() + random.random() + numpy.random.random() for _ in responses]
    return [len(text) % 3 + x for text, x in zip(responses, own)]
"""
GOLD = {"use": "python", "path": "reward.py"}
PROXY = {"use": "python", "path": "proxy.py"}


def project(folder: Path, model: Path, memory: str, stages: Mapping[str, Any]) -> Path:
    """The toy recipe with ``stages`` alone; every reward in them draws."""
    path = write_toy_recipe(folder, model, memory)
    values = yaml.safe_load(path.read_text())
    values["stages"] = dict(stages)
    used = {"demonstrations"} if "sft" in stages else set()
    used |= {"prompts"} if set(stages) - {"sft"} else set()
    values["data"] = {name: source for name, source in values["data"].items() if name in used}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    for name in ("reward.py", "proxy.py"):
        (folder / name).write_text(RANDOM)
    return path


SAMPLING = {"max_new_tokens": 6, "batch_size": 2}


def toy_stage(name: str, **changes: Any) -> dict[str, Any]:
    """A stage of the toy recipe that starts from the pretrained model."""
    block = merged(toy_recipe_values(Path(), "full")["stages"][name], changes)
    return {key: value for key, value in block.items() if key != "from" and value is not None}


def stages_of(name: str) -> dict[str, Any]:
    """A stage in which rewards draw, and those that it needs."""
    match name:
        case "sft":
            block = toy_stage("sft", epochs=3, select_by=GOLD, sampling=SAMPLING)
        case "ppo":
            gate = {"skip": ["reward", "repeatable"]}
            changes = {"ptx": None, "ema": 0.9, "steps": 4, "samples_per_prompt": 2, "gate": gate}
            block = toy_stage("ppo", reward=GOLD, **changes)
        case "judged":
            judge = {"use": "judge", "reward": GOLD, "parallel": 1}
            return {"ppo": stages_of("ppo")["ppo"] | {"reward": judge}}
        case "collect":
            labeler = {"use": "scripted", "reward": GOLD}
            block = toy_stage("collect", labeler=labeler, sampling=SAMPLING)
        case "best_of_n":
            block = {"use": "best_of_n", "proxies": {"one": PROXY}, "gold": GOLD}
            block |= {"split": "train", "samples_per_prompt": 4, "sampling": SAMPLING}
        case "evaluate":
            block = toy_stage("evaluate", gold=GOLD, reward=PROXY, sampling=SAMPLING)
            block |= {"baseline": "sft", "candidates": {"same": "sft", "again": "sft"}}
            for idle in ("pretraining", "pretraining_tokens", "pretraining_length"):
                del block[idle]
            return {"sft": toy_stage("sft"), name: block}
    return {name: block}


def run(recipe: Path, out: Path, *overrides: str) -> None:
    resolved, loaded, _ = open_recipe(recipe, overrides)
    run_recipe(resolved, loaded, out=out, plain=True)


def kept(line: str) -> str:
    """A row of the metrics without times and stamps."""
    row = json.loads(line)
    varies = ("time", "run", "attempt", "fingerprint")
    row = {k: v for k, v in row.items() if k not in varies and not k.startswith("seconds/")}
    return json.dumps(row, sort_keys=True)


def results(out: Path) -> dict[str, Any]:
    """All that a run leaves, but for times: files as bytes or tensors, metrics row by row."""
    found: dict[str, Any] = {"summary": summary(out)}
    found["metrics"] = sorted(map(kept, (out / "metrics.jsonl").read_text().splitlines()))
    for path in sorted((out / "stages").rglob("*")):
        name = str(path.relative_to(out))
        if path.suffix == ".safetensors":
            found[name] = {k: t.tolist() for k, t in load_file(path).items()}
        elif path.is_file() and path.name != "stage.json":
            found[name] = path.read_bytes()
    return found


STAGES = ("sft", "ppo", "judged", "collect", "best_of_n", "evaluate")


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_was_cut_draws_as_one_that_was_not(
    stage: str, memory: str, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = project(tmp_path / "project", toy_model, memory, stages_of(stage))
    run(recipe, tmp_path / "whole")
    expected, cut = results(tmp_path / "whole"), 0
    for call in (3, 5, 9, 14):
        out = tmp_path / f"cut{call}"
        with monkeypatch.context() as patch:
            patch.setenv("CUT_AT", str(call))
            try:
                run(recipe, out, EVERY_STEP)
                break  # there are not so many calls
            except KeyboardInterrupt:
                cut += 1
        run(recipe, out, EVERY_STEP)
        assert results(out) == expected, call
    assert cut > 1


def states() -> dict[str, Any]:
    """Of every global generator, as what can be compared."""
    found = GeneratorState(torch.Generator()).state_dict()
    return {
        "torch": found["torch"].tolist(),
        "python": random.getstate(),
        "numpy": str(numpy.random.get_state(legacy=False)),
        "cuda": [state.tolist() for state in found["cuda"]],
    }


@pytest.mark.parametrize("memory", MEMORIES)
def test_no_step_of_a_built_in_stage_moves_a_global_generator(
    memory: str, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is drawn there comes from the stage's own generator, or from keys."""
    moved: dict[str, list[str]] = {}
    steps = StageExecution.steps

    def watched(self: StageExecution, *args: Any, **kwargs: Any) -> Iterator[int]:
        moved[self.id] = []
        for step in steps(self, *args, **kwargs):
            before = states()
            yield step
            after = states()
            moved[self.id] += [f"{step}: {name}" for name in before if before[name] != after[name]]

    monkeypatch.setattr(StageExecution, "steps", watched)
    path = write_toy_recipe(tmp_path / "project", toy_model, memory)
    values = yaml.safe_load(path.read_text())
    values["stages"]["evaluate"]["candidates"] = {"ppo": "ppo", "sft": "sft"}
    values["stages"]["best_of_n"] = stages_of("best_of_n")["best_of_n"] | {
        "from": "ppo",
        "proxies": {"one": {"use": "reward_model", "from": "reward_model"}},
    }
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    run(path, tmp_path / "run")
    assert moved == {stage: [] for stage in values["stages"]}


@pytest.mark.parametrize("memory", MEMORIES)
def test_building_what_nobody_trains_draws_nothing_that_others_would_have_drawn(
    memory: str, context_of: Callable[..., Any], tmp_path: Path
) -> None:
    strategy = context_of(memory).memory()
    strategy.policy(None).save(tmp_path / "policy")
    strategy.scorer(None).save(tmp_path / "reward")
    before = states()
    for folder in (None, tmp_path / "policy"):
        strategy.policy(folder, trainable=False)
        strategy.reference(folder)
    strategy.scorer(tmp_path / "reward", trainable=False)
    strategy.scorer(None, trainable=False)
    assert states() == before

"""Pairs of runs that differ in one input: the stages that run again are those that it reaches.

A walk at random through the inputs of a recipe that names every kind of them. Each step changes one
thing and compares what `run` would do with what a table, written by hand, says of the recipe.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel
from safetensors.torch import load_file, save_file
from test_reused_results import install
from toy_runs import one_stage, run
from toys import write_toy_recipe

from rlhf_kit.components import Options, Part
from rlhf_kit.context import RunContext
from rlhf_kit.errors import RlhfKitError
from rlhf_kit.recipe import open_recipe

STAGES = ("sft", "collect", "reward_model", "ppo", "evaluate")
NEEDS = {
    "sft": (),
    "collect": ("sft",),
    "reward_model": ("sft", "collect"),
    "ppo": ("sft", "reward_model"),
    "evaluate": ("sft", "ppo", "reward_model"),
}
# What changes rounding at most, and what changes only what is logged.
HARMLESS = {
    "micro_batch",
    "ptx.micro_batch",
    "sampling.batch_size",
    "trunk",
    "trunk_cache_mib",
    "device",
    "gate.check",
    "gate.skip",
    "gradient_norms",
    "side_by_side",
}
STEPS = 90


def reached(*direct: str) -> list[str]:
    """Those stages, and the ones that need them."""
    found = set(direct)
    for stage in STAGES:
        if any(need in found for need in NEEDS[stage]):
            found.add(stage)
    return [stage for stage in STAGES if stage in found]


ESTIMATOR = """
import rlhf_kit

@rlhf_kit.hookimpl
def rlhf_components():
    yield rlhf_kit.Component("reward", "file_reward", "file_plugin:Zero")

class Zero:
    def __init__(self, options):
        pass

    def __call__(self, samples):
        import torch
        return torch.zeros(len(samples.responses))
"""


class Project:
    """A recipe, its inputs, and the changes that can be made to them."""

    def __init__(self, folder: Path, model: Path, modules: Path, package: Path) -> None:
        self.folder, self.modules = folder, modules
        self.recipe = write_toy_recipe(folder, model, "hydra")
        self.model = shutil.copytree(model, folder / "model")
        (self.model / "README.md").write_text("a model")
        (folder / "chat.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
        (folder / "file_plugin.py").write_text(ESTIMATOR)
        (folder / "beside.txt").write_text("nobody names this")
        (modules / "prop_scorer.py").write_text("import prop_helper\nreward = prop_helper.reward\n")
        (modules / "prop_helper.py").write_text(
            "def reward(responses):\n    return [0.1 * len(text) for text in responses]\n"
        )
        (modules / "prop_beside.py").write_text("")
        other = one_stage(folder / "other", model, "ppo", steps=1)
        self.reference = run(other, folder / "earlier")
        values = yaml.safe_load(self.recipe.read_text())
        values["model"] |= {"name": "model", "chat_template": "chat.jinja"}
        values["model"]["name"] = "./model"
        values["plugins"] = ["file_plugin.py"]
        stages = values["stages"]
        stages["collect"]["labeler"]["reward"] = {
            "use": "weighted_sum",
            "rewards": {"file": {"use": "python", "path": "reward.py"}, "own": "file_reward"},
        }
        stages["ppo"]["reference"] = "./earlier/"
        stages["evaluate"]["gold"] = {"use": "python", "module": "prop_scorer"}
        stages["evaluate"]["reward"] = "toy_brief"
        self.values = values
        self.package = package
        self.moves = 0

    def fingerprints(self) -> dict[str, str]:
        self.recipe.write_text(yaml.safe_dump(self.values, sort_keys=False))
        for name in [n for n in sys.modules if n.startswith(("rlhf_kit_file_", "toy_brief"))]:
            del sys.modules[name]  # as in a new process
        resolved, _, _ = open_recipe(self.recipe)
        records = RunContext(resolved, self.folder / "run").records()
        return {id: record.fingerprint for id, record in records.items()}

    # Each change returns what it should make run again.

    def row(self, chance: random.Random) -> list[str]:
        name, users = chance.choice(
            [
                ("demonstrations.jsonl", ("sft", "reward_model")),
                ("prompts.jsonl", ("collect", "ppo", "evaluate")),
                ("text.txt", ("ppo", "evaluate")),
            ]
        )
        path = self.folder / name
        if name == "text.txt":
            path.write_text(path.read_text() + f"\n\nMore of it, {chance.random()}.\n")
            return reached(*users)
        lines = path.read_text().splitlines()
        place = chance.randrange(len(lines))
        row = json.loads(lines[place])
        row["note"] = chance.random()
        lines[place] = json.dumps(row)
        path.write_text("\n".join(lines) + "\n")
        return reached(*users)

    def source(self, chance: random.Random) -> list[str]:
        path, users = chance.choice(
            [
                (self.folder / "reward.py", ("collect",)),
                (self.folder / "file_plugin.py", ("collect",)),
                (self.modules / "prop_scorer.py", ("evaluate",)),
                (self.modules / "prop_helper.py", ("evaluate",)),
                (self.modules / "prop_beside.py", ()),
                (self.package / "toy_brief/brief.py", ("evaluate",)),
                (self.package / "toy_brief/plugin.py", ("evaluate",)),
                (self.package / "toy_brief/words.json", ("evaluate",)),
                (self.folder / "beside.txt", ()),
                (self.folder / "chat.jinja", STAGES),
            ]
        )
        end = {".py": "#", ".json": " ", ".jinja": "{# #}"}.get(path.suffix, ".")
        path.write_text(path.read_text() + end)
        return reached(*users)

    def weights(self, chance: random.Random) -> list[str]:
        files = [p for p in sorted(self.model.iterdir()) if p.name != "README.md"]
        path = chance.choice(files)
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            chance.choice(sorted(tensors.items()))[1].view(-1)[0] += 1.0
            save_file(tensors, path, {"format": "pt"})
        else:
            path.write_text(path.read_text() + " ")
        return reached(*STAGES)

    def referenced(self, chance: random.Random) -> list[str]:
        path = self.reference / "branch.safetensors"
        tensors = load_file(path)
        chance.choice(sorted(tensors.items()))[1].view(-1)[0] += 1.0
        save_file(tensors, path)
        return reached("ppo")

    def touched(self, chance: random.Random) -> list[str]:
        """Times of writing, and places, mean nothing."""
        if chance.random() < 0.5:
            for path in (*self.model.iterdir(), *self.folder.glob("*.*")):
                os.utime(path, ns=(1, 10**9 * chance.randrange(10**9)))
            return []
        self.moves += 1
        moved = self.folder.with_name(f"moved-{self.moves}")
        shutil.move(self.folder, moved)
        place = self.reference.relative_to(self.folder)
        self.folder, self.reference = moved, moved / place
        self.model, self.recipe = moved / "model", moved / self.recipe.name
        return []

    def renamed(self, chance: random.Random) -> list[str]:
        self.values["name"] = f"name-{chance.randrange(10**6)}"
        return []

    def seed(self, chance: random.Random) -> list[str]:
        self.values["seed"] += 1
        return reached(*STAGES)

    def option(self, chance: random.Random) -> list[str]:
        """Another value of a random option of a random block; nothing where the recipe refuses."""
        resolved, _, _ = open_recipe(self.recipe)
        blocks: list[tuple[dict[str, Any], Any, tuple[str, ...]]] = [
            (self.values["memory"], resolved.memory.options, STAGES),
            *(
                (self.values["stages"][id], stage.part.options, (id,))
                for id, stage in resolved.stages.items()
            ),
        ]
        block, options, users = chance.choice(blocks)
        name = chance.choice(list(type(options).model_fields))
        field, old = type(options).model_fields[name], getattr(options, name)
        new = other_value(field.annotation, old)
        if new is None or isinstance(old, Part):
            return []
        before = dict(block)
        block[field.alias or name] = new
        self.recipe.write_text(yaml.safe_dump(self.values, sort_keys=False))
        try:
            open_recipe(self.recipe)
        except RlhfKitError:
            block.clear()
            block |= before
            return []
        return [] if name in HARMLESS else reached(*users)


def other_value(annotation: Any, old: Any) -> Any:
    """Another value of a simple type; None where there is none to be had."""
    kinds = [annotation, *get_args(annotation)]
    choices = [c for kind in kinds if get_origin(kind) is Literal for c in get_args(kind)]
    if choices and not isinstance(old, list):
        return next((c for c in choices if c != old and c not in ("auto", "bfloat16")), None)
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        return old + 1
    if isinstance(old, float):
        return old / 2 if old else 0.5
    if old == "cpu":
        return "auto"
    if isinstance(old, list) and choices and not old:
        return [choices[0]]
    return None


@pytest.fixture
def project(toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    modules = tmp_path / "modules"
    modules.mkdir()
    package = install(tmp_path / "site", editable=True)
    for place in (modules, tmp_path / "site", package):
        monkeypatch.syspath_prepend(str(place))
    yield Project(tmp_path / "project", toy_model, modules, package)
    for name in [name for name in sys.modules if name.startswith(("toy_brief", "prop_"))]:
        del sys.modules[name]


def test_what_runs_again_is_what_a_change_reaches(project: Project) -> None:
    chance = random.Random(7)
    changes: list[Callable[[random.Random], list[str]]] = [
        project.row,
        project.source,
        project.weights,
        project.referenced,
        project.touched,
        project.renamed,
        project.seed,
        *[project.option] * 5,
    ]
    before, seen = project.fingerprints(), set()
    for step in range(STEPS):
        change = chance.choice(changes)
        expected = change(chance)
        after = project.fingerprints()
        found = [stage for stage in STAGES if before[stage] != after[stage]]
        assert found == expected, f"step {step}: {change.__name__}"
        before = after
        seen.add((change.__name__, tuple(expected)))
    assert len(seen) > 15  # the walk was no stroll


def variants(options: BaseModel) -> Iterator[tuple[list[str], Any]]:
    """(keys down to it, another value) of every simple option."""
    for name, field in type(options).model_fields.items():
        key, value = field.alias or name, getattr(options, name)
        if isinstance(value, Options):
            yield from (([key, *inner], new) for inner, new in variants(value))
        elif not isinstance(value, Part):
            new = other_value(field.annotation, value)
            if new is not None:
                yield [key], new


def test_every_option_of_every_stage(project: Project) -> None:
    """One at a time, from the same recipe, so that none is left to chance."""
    before, clean = project.fingerprints(), json.dumps(project.values)
    resolved, _, _ = open_recipe(project.recipe)
    tried: dict[bool, set[str]] = {True: set(), False: set()}
    for id, stage in resolved.stages.items():
        for keys, new in variants(stage.part.options):
            project.values = json.loads(clean)
            block = project.values["stages"][id]
            for key in keys[:-1]:
                block = block.setdefault(key, {})
            block[keys[-1]] = new
            try:
                after = project.fingerprints()
            except RlhfKitError:
                continue  # such as an option that another one makes idle
            found, name = (
                [other for other in STAGES if before[other] != after[other]],
                ".".join(keys),
            )
            assert found == ([] if name in HARMLESS else reached(id)), f"{id}.{name}"
            tried[name in HARMLESS].add(name)
    assert tried[True] == HARMLESS - {"device"}  # the memory's, which the walk meets
    assert len(tried[False]) > 30


def test_a_refused_override_of_any_kind_moves_nothing(toy_model: Path, tmp_path: Path) -> None:
    recipe = write_toy_recipe(tmp_path / "project", toy_model, "hydra")
    out = tmp_path / "run"
    run(recipe, out)

    def state() -> dict[str, tuple[int, int]]:
        found = ((path, path.stat()) for path in sorted(out.rglob("*")))
        return {str(path): (s.st_mtime_ns, s.st_ino) for path, s in found}

    before = state()
    (tmp_path / "broken.py").write_text("def reward(responses):\n    return [1.0]\n")
    (tmp_path / "empty").mkdir()
    for override in (
        "ppo.kl.coef=-1",
        "ppo.minibatch=1000",
        "sft.from=ppo",
        f"evaluate.gold={{use: python, path: {tmp_path}/broken.py}}",
        f"data.prompts.path={tmp_path}/none.jsonl",
        f"model.name={tmp_path}/empty",
        "memory.trainable_layers=4",
        "memory={use: lora, target_modules: [nothing_is_called_so]}",
        "model.layers=99",
        "ppo.sampling.max_new_tokens=4000",
    ):
        with pytest.raises(RlhfKitError):
            run(recipe, out, override)
        assert state() == before, override

"""The yardstick: it runs, its prompts are alike, and its table refuses what is not."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf_kit.errors import DataError
from rlhf_kit.recipe import open_recipe
from rlhf_kit.run import run_recipe

ROOT = Path(__file__).parents[2]


def bench_table() -> Any:
    path = ROOT / "tests/benchmarks/bench_table.py"
    spec = importlib.util.spec_from_file_location("bench_table", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_prompts_are_alike() -> None:
    text = (ROOT / "recipes/data/bench.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert len(rows) == 64
    assert {len(row["token_ids"]) for row in rows} == {16}
    assert len({tuple(row["token_ids"]) for row in rows}) == 64
    assert all(16 < token < 49_152 for row in rows for token in row["token_ids"])


@pytest.mark.parametrize("memory", ["hydra", "lora", "full"])
def test_the_recipe_runs(toy_model: Path, tmp_path: Path, memory: str) -> None:
    rows = [{"token_ids": [(7 * i + j) % 256 for j in range(16)]} for i in range(32)]
    lines = (json.dumps({**row, "split": "train"}) + "\n" for row in rows)
    (tmp_path / "bench.jsonl").write_text("".join(lines))
    changes = [
        f"model={{use: pretrained, name: {toy_model}, end_tokens: ['<|pad|>']}}",
        f"memory.use={memory}",
        "memory.dtype=float32",
        "memory.device=cpu",
        f"data.prompts.path={tmp_path / 'bench.jsonl'}",
        "ppo.steps=2",
        "observers={seen: {use: samples, every: 1, count: 32}}",
    ]
    if memory == "hydra":
        changes.append("memory.trainable_layers=2")
    recipe, loaded, _ = open_recipe(ROOT / "recipes/bench.yaml", changes)
    run_recipe(recipe, loaded, out=tmp_path / "run", plain=True)
    seen = (tmp_path / "run/observers/seen/samples.jsonl").read_text().splitlines()
    asked = {json.loads(line)["prompt"] for line in seen}
    assert asked == {" ".join(map(str, row["token_ids"])) for row in rows}


def row(step: int, length: float, **seconds: float) -> dict[str, Any]:
    return {"step": step, "response_length": length} | {
        f"seconds/{phase}": value for phase, value in seconds.items()
    }


def test_the_table_drops_the_first_step() -> None:
    rows = [
        row(0, 32.0, sample=90.0, update=90.0),
        row(1, 32.0, sample=1.0, update=4.0),
        row(2, 32.0, sample=3.0, update=5.0),
        row(3, 32.0, sample=2.0, update=9.0),
    ]
    assert bench_table().medians(rows) == {"sample": 2.0, "update": 5.0, "step": 8.0}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row(0, 32.0, sample=1.0)], "at least two"),
        ([row(0, 32.0, sample=1.0), row(1, 31.5, sample=1.0)], "a response has ended"),
    ],
)
def test_the_table_refuses_what_does_not_compare(rows: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        bench_table().medians(rows)


def test_token_ids_are_read_as_they_are(toy_model: Path, tmp_path: Path) -> None:
    from rlhf_kit.context import RunContext

    changes = [f"model={{use: pretrained, name: {toy_model}}}"]
    recipe, _, _ = open_recipe(ROOT / "recipes/bench.yaml", changes)
    tokenizer = RunContext(recipe, tmp_path).model_and_memory(None).tokenizer
    assert tokenizer.prompt({"token_ids": [5, 258, 0]}) == [5, 258, 0]
    with pytest.raises(DataError, match=r"prompt 'far': 259 is no token of this .* 0 to 258"):
        tokenizer.prompt({"id": "far", "token_ids": [5, 259]})


@pytest.mark.parametrize("script", ["bench_table", "quickstart_table"])
@pytest.mark.parametrize(
    "files",
    [
        None,
        {},
        {"metrics.jsonl": "", "summary.json": ""},
        {"metrics.jsonl": '{"step": 0, "resp', "summary.json": '{"seed": 0, "go'},
        {"metrics.jsonl": "{}\n{}\n", "summary.json": "{}"},
        {"metrics.jsonl": "[]\n3\n", "summary.json": "[]"},
    ],
    ids=["missing", "empty", "empty-files", "cut", "of-other-keys", "of-lists"],
)
def test_a_table_of_no_finished_run(
    script: str, files: dict[str, str] | None, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    if files is not None:
        run.mkdir()
        for name, text in files.items():
            (run / name).write_text(text)
    command = [sys.executable, str(ROOT / f"tests/benchmarks/{script}.py")]
    for arguments in ([], [str(run)]):
        found = subprocess.run([*command, *arguments], capture_output=True, text=True)
        assert found.returncode == 1
        assert len(found.stderr.splitlines()) == 1, found.stderr

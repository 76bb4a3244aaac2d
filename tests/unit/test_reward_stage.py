"""The stage `reward_model`, whole, on comparisons from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from toy_runs import metrics, run, summary
from toys import write_toy_recipe

from rlhf_kit.context import RunContext, StageContext
from rlhf_kit.errors import NumericsError
from rlhf_kit.recipe import open_recipe
from rlhf_kit.stagekit.batches import answered, read_comparisons
from rlhf_kit.stagekit.prompts import PromptSet
from rlhf_kit.types import PreferenceInputs

WORDS = ("sea", "bus", "cat", "rain", "tea", "oak", "bell", "kite", "moon", "hill")


RANKS: tuple[list[int | None], ...] = ([0, 1, 2, 2], [1, 0, None, 2], [1, 0])


def comparisons() -> list[dict[str, Any]]:
    """Two to four completions, some tied, some without a rank."""
    rows = []
    for i, word in enumerate(WORDS):
        ranks = RANKS[i % 3]
        texts = [f"The {word}.", f"A {word} is a fine thing to see!", "No.", f"Why a {word}?"]
        row = {"prompt": f"Of {word}", "completions": texts[: len(ranks)], "ranks": ranks}
        rows.append(row | {"split": "train" if i < 7 else "validation"})
    return rows


def recipe(folder: Path, model: Path, memory: str, **options: Any) -> Path:
    """The toy recipe's reward model alone, from the pretrained model."""
    path = write_toy_recipe(folder, model, memory)
    (folder / "comparisons.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in comparisons())
    )
    values = yaml.safe_load(path.read_text())
    values["data"] = {
        "demonstrations": values["data"]["demonstrations"],
        "comparisons": {"use": "comparisons", "path": "comparisons.jsonl"},
    }
    block = {k: v for k, v in values["stages"]["reward_model"].items() if k != "from"}
    values["stages"] = {"reward_model": {**block, "micro_batch": 2, **options}}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.mark.parametrize("memory", ["full", "lora", "hydra"])
def test_demonstrations_average_zero(toy_model: Path, tmp_path: Path, memory: str) -> None:
    """By a shift of the head, which reloading keeps and no comparison sees."""
    path = recipe(tmp_path / "project", toy_model, memory, epochs=2)
    folder = run(path, tmp_path / "run")
    resolved, _, _ = open_recipe(path)
    context = StageContext(RunContext(resolved, tmp_path / "other"), "reward_model")
    model = context.memory().scorer(folder, trainable=False)
    rows = [
        json.loads(line)
        for line in (tmp_path / "project" / "demonstrations.jsonl").read_text().splitlines()
    ]
    rows = [row for row in rows if row["split"] == "train"]
    prompts = PromptSet.of(rows, context.tokenizer)
    texts = answered(prompts, ((row["response"], True) for row in rows), context.tokenizer)
    read = read_comparisons(comparisons()[7:], context.tokenizer)
    held_out = read.select(torch.arange(len(read)))
    options = resolved.stages["reward_model"].part.options
    loss = context.build(options.loss)  # type: ignore[attr-defined]
    with torch.no_grad():
        scores = model.score(texts.select(torch.arange(len(texts))))
        compared = model.compare(held_out.texts)
    assert scores.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert scores.abs().max() > 1e-3
    inputs = PreferenceInputs(compared, held_out.ranks, held_out.mask)
    found = (loss(inputs).total / loss.count(held_out.ranked)).item()
    last = metrics(tmp_path / "run")[-1]  # before the shift
    assert found == pytest.approx(last["validation/loss"], abs=1e-5)
    assert found == pytest.approx(summary(tmp_path / "run")["reward_model"]["loss"], abs=1e-5)


def test_summary_and_validation(toy_model: Path, tmp_path: Path) -> None:
    folder = run(recipe(tmp_path / "project", toy_model, "hydra", epochs=2), tmp_path / "run")
    rows = metrics(tmp_path / "run")
    # 7 prompts in batches of 4: a pass is two steps, the second one short.
    assert len(rows) == 4
    assert ["validation/accuracy" in row for row in rows] == [False, True, False, True]
    found = summary(tmp_path / "run")
    figures = found["reward_model"]
    assert found["rm_pair_accuracy"] == figures["accuracy"]
    assert figures["pairs"] == sum(b["count"] for b in figures["reliability"]) == 3 + 1 + 5
    assert len(figures["reliability"]) == 10
    assert figures["accuracy_low"] <= figures["accuracy"] <= figures["accuracy_high"]
    last = {k.removeprefix("validation/"): v for k, v in rows[-1].items() if "validation" in k}
    assert last.keys() == figures.keys() - {"reliability"}
    same = last.keys() - {"score_mean"}  # the shift moves that alone
    assert [last[k] for k in same] == [pytest.approx(figures[k], abs=1e-4) for k in same]
    assert json.loads((folder / "reward_proof.json").read_text())["scores"]


def test_trunk_cache_changes_nothing(toy_model: Path, tmp_path: Path) -> None:
    losses = []
    for size in (1024, 0):
        path = recipe(tmp_path / str(size), toy_model, "hydra", trunk_cache_mib=size)
        run(path, tmp_path / f"run{size}")
        losses.append([row["rm/loss"] for row in metrics(tmp_path / f"run{size}")])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_change_nothing(toy_model: Path, tmp_path: Path, size: int) -> None:
    """Nor does the width that they give to a batch."""
    rows = []
    for micro_batch in (4, size):
        path = recipe(tmp_path / str(micro_batch), toy_model, "full", micro_batch=micro_batch)
        run(path, tmp_path / f"run{micro_batch}")
        rows.append(metrics(tmp_path / f"run{micro_batch}"))
    for one, other in zip(*rows, strict=True):
        del one["stage"], other["stage"]
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)


def test_null_ranks_become_minus_one(toy_model: Path, tmp_path: Path) -> None:
    resolved, _, _ = open_recipe(recipe(tmp_path / "project", toy_model, "full"))
    context = StageContext(RunContext(resolved, tmp_path / "run"), "reward_model")
    tokenizer = context.tokenizer
    rows = [{"prompt": "Hi", "completions": ["a", "b", "c"], "ranks": [1, None, 0]}]
    batch = read_comparisons(rows, tokenizer).select(torch.tensor([0]))
    assert batch.ranks.tolist() == [[1, -1, 0]]
    assert bool(batch.mask.all())
    assert batch.texts.lengths().tolist() == [[2, 2, 2]]  # a letter and the end
    separate, _ = batch.texts.unpacked()
    prompts = PromptSet.of(rows * 3, tokenizer)
    wanted = answered(prompts, ((text, True) for text in "abc"), tokenizer).select(torch.arange(3))
    for name in ("tokens", "mask", "target"):
        assert torch.equal(getattr(separate, name), getattr(wanted, name))


def test_another_head_is_refused_by_the_next_stage(toy_model: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path / "project", toy_model, "full")
    folder = run(path, tmp_path / "run")
    proof = json.loads((folder / "reward_proof.json").read_text())
    proof["scores"] = [score + 0.01 for score in proof["scores"]]
    (folder / "reward_proof.json").write_text(json.dumps(proof))
    resolved, _, _ = open_recipe(path)
    memory = StageContext(RunContext(resolved, tmp_path / "other"), "reward_model").memory()
    with pytest.raises(NumericsError, match="reward model scores its own proof"):
        memory.scorer(folder)

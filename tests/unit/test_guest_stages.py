"""The stages of a stranger's package, whole, on a toy model: every strategy, resume, what follows.

Their losses are tested in the package itself, and what they teach in tests/learning.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_reward_stage import comparisons
from toy_runs import metrics, run, run_in_two, summary
from toys import write_toy_recipe

from rlhf_kit.context import RunContext, StageContext
from rlhf_kit.errors import DataError
from rlhf_kit.recipe import open_recipe
from rlhf_kit.stagekit import read_labelled, read_pairs, response_logprobs

pytest.importorskip("rlhf_kit_guests", reason="pip install -e plugins/guests")

STAGES = ("dpo", "kto")
STRATEGIES = ("full", "lora", "hydra")


def recipe(folder: Path, model: Path, memory: str, use: str, **options: Any) -> Path:
    """One stage that learns from the pretrained model by comparisons from a file."""
    path = write_toy_recipe(folder, model, memory)
    rows = "".join(json.dumps(row) + "\n" for row in comparisons())
    (folder / "comparisons.jsonl").write_text(rows)
    values = yaml.safe_load(path.read_text())
    values["data"] = {"comparisons": {"use": "comparisons", "path": "comparisons.jsonl"}}
    block = {
        "use": use,
        "comparisons": "comparisons",
        "epochs": 2,
        "batch_size": 4,
        "micro_batch": 3,
        "optimizer": {"learning_rate": 5e-3 if memory == "lora" else 1e-3, "warmup_steps": 0},
    }
    values["stages"] = {"learns": {**block, **options}}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def gains(path: Path, folder: Path, texts: Any) -> list[float]:
    """By how many nats the saved policy has left the pretrained one, for each text."""
    resolved, _, _ = open_recipe(path)
    context = StageContext(RunContext(resolved, folder / "other"), "learns")
    memory = context.memory()
    batch = texts(context.tokenizer)
    with torch.no_grad():
        after = response_logprobs(memory.policy(folder, trainable=False), batch)
        before = response_logprobs(memory.reference(None), batch)
    found: list[float] = (after - before).tolist()
    return found


def held_out() -> list[dict[str, Any]]:
    return [row for row in comparisons() if row["split"] == "validation"]


@pytest.mark.parametrize("memory", STRATEGIES)
def test_dpo(toy_model: Path, tmp_path: Path, memory: str) -> None:
    path = recipe(tmp_path / "project", toy_model, memory, "dpo")
    folder = run(path, tmp_path / "run")
    rows = metrics(tmp_path / "run")
    # Four completions with one tie, three ranked ones and two make 5, 3 and 1 pairs: 23 of all.
    assert len(rows) == 2 * math.ceil(23 / 4)
    assert rows[0]["dpo/loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert rows[-1]["dpo/loss"] < rows[0]["dpo/loss"]

    def of(side: str) -> list[float]:
        return gains(path, folder, lambda t: whole(getattr(read_pairs(held_out(), t), side)))

    margins = [a - b for a, b in zip(of("chosen"), of("rejected"), strict=True)]
    found = summary(tmp_path / "run")["preference"]
    assert found["margin"] == pytest.approx(sum(margins) / len(margins), abs=1e-3)
    assert found["accuracy"] == pytest.approx(sum(m > 0 for m in margins) / len(margins))
    assert rows[-1]["validation/margin"] == found["margin"]
    assert found["margin"] > 0.1


@pytest.mark.parametrize("memory", STRATEGIES)
def test_kto(toy_model: Path, tmp_path: Path, memory: str) -> None:
    path = recipe(tmp_path / "project", toy_model, memory, "kto")
    folder = run(path, tmp_path / "run")
    rows = metrics(tmp_path / "run")
    assert rows[0]["kto/loss"] == pytest.approx(0.5, abs=1e-5)
    assert rows[-1]["kto/loss"] < rows[0]["kto/loss"]
    gained = gains(path, folder, lambda t: whole(read_labelled(held_out(), t).texts))
    resolved, _, _ = open_recipe(path)
    tokenizer = StageContext(RunContext(resolved, tmp_path / "x"), "learns").tokenizer
    labels = read_labelled(held_out(), tokenizer).desirable.tolist()
    good = [gain for gain, label in zip(gained, labels, strict=True) if label]
    bad = [gain for gain, label in zip(gained, labels, strict=True) if not label]
    found = summary(tmp_path / "run")["preference"]
    assert found["gap"] == pytest.approx(sum(good) / len(good) - sum(bad) / len(bad), abs=1e-3)
    assert found["gap"] > 0.1


def whole(texts: Any) -> Any:
    return texts.select(torch.arange(len(texts)))


@pytest.mark.parametrize(("use", "memory"), [("dpo", "full"), ("dpo", "hydra"), ("kto", "lora")])
def test_killed_it_goes_on_to_the_bit(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: str, memory: str
) -> None:
    path = recipe(tmp_path / "project", toy_model, memory, use)
    whole_run = run(path, tmp_path / "whole")
    parts = run_in_two(path, tmp_path / "parts", 2, monkeypatch)
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert summary(tmp_path / "parts") == summary(tmp_path / "whole")
    files = sorted(file.relative_to(parts) for file in parts.rglob("*.safetensors"))
    assert files
    for file in files:
        assert (parts / file).read_bytes() == (whole_run / file).read_bytes()


@pytest.mark.parametrize("use", STAGES)
def test_micro_batches_change_nothing(toy_model: Path, tmp_path: Path, use: str) -> None:
    """Nor the baseline of KTO, which is of the whole step."""
    rows = []
    for size in (1, 4):
        path = recipe(tmp_path / str(size), toy_model, "full", use, micro_batch=size)
        run(path, tmp_path / f"run{size}")
        rows.append(metrics(tmp_path / f"run{size}"))
    for one, other in zip(*rows, strict=True):
        del one["stage"], other["stage"]
        assert one == pytest.approx(other, rel=1e-3, abs=1e-3)


def test_from_what_was_collected_to_what_is_evaluated(toy_model: Path, tmp_path: Path) -> None:
    """SFT, completions that a script ranks, DPO in the place of reward model and PPO."""
    path = write_toy_recipe(tmp_path / "project", toy_model, "hydra")
    values = yaml.safe_load(path.read_text())
    stages = values["stages"]
    evaluate = stages["evaluate"] | {"candidates": {"dpo": "dpo"}}
    del evaluate["reward"]
    rate = {"learning_rate": 1e-3, "warmup_steps": 0}
    values["stages"] = {
        "sft": stages["sft"],
        "collect": stages["collect"],
        "dpo": {"use": "dpo", "from": "sft", "comparisons": "comparisons", "optimizer": rate},
        "evaluate": evaluate,
    }
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    run(path, tmp_path / "run")
    found = json.loads((tmp_path / "run/summary.json").read_text())
    assert found["preference"].keys() == {"accuracy", "margin"}
    assert found["gold_score"].keys() == {"baseline", "dpo"}
    assert found["kl"]["dpo"] != 0


def test_wrong_comparisons_are_refused_before_a_model_is_loaded(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(tmp_path / "project", toy_model, "full", "dpo")
    rows = comparisons()
    rows[0]["completions"][0] = "endless " * 99
    file = tmp_path / "project" / "comparisons.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def no_model(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(StageContext, "memory", no_model)
    with pytest.raises(DataError, match="exceed the context of 256"):
        run(path, tmp_path / "run")

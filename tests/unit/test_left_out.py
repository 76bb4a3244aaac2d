"""Rows that a stage does not use are told and counted, never dropped in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from toys import toy_tokenizer, write_toy_recipe

from rlhf_kit.recipe import open_recipe
from rlhf_kit.run import run_recipe

LENGTHS = {"train": 8, "validation": 4, "test": 6}


def run(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str], keep: tuple[str, ...], **c: Any
) -> tuple[dict[str, Any], str]:
    """Run the stages ``keep``, in which every other prompt is long; summary and what was said."""
    path = write_toy_recipe(folder / "project", model, "hydra", **c)
    values = yaml.safe_load(path.read_text())
    values["stages"] = {name: values["stages"][name] for name in keep}
    used = json.dumps(values["stages"])
    values["data"] = {
        name: block
        for name, block in values["data"].items()
        if f'"{name}"' in used or name in ("prompts", "demonstrations")
    }
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    rows = [
        {"prompt": f"{split} {i}" + "?" * 60 * (i % 2), "response": f"No {i}.", "split": split}
        for split, count in LENGTHS.items()
        for i in range(count)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for name in ("prompts", "demonstrations"):
        (folder / "project" / f"{name}.jsonl").write_text(lines)
    resolved, loaded, _ = open_recipe(path)
    capsys.readouterr()
    summary = run_recipe(resolved, loaded, out=folder / "run", plain=True)
    captured = capsys.readouterr()
    return summary, captured.out + captured.err


LONG = "longer than max_prompt_tokens 64"


def test_sft_and_ppo_say_what_they_drop(
    toy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gold = {"use": "python", "path": "reward.py"}
    _, said = run(
        tmp_path,
        toy_model,
        capsys,
        ("sft", "ppo"),
        sft={"max_prompt_tokens": 64},
        ppo={"max_prompt_tokens": 64, "reward": gold, "steps": 1},
    )
    assert f"[sft] left out 4 of 8 prompts of split train: {LONG}" in said
    assert f"[sft] left out 2 of 4 prompts of split validation: {LONG}" in said
    assert f"[ppo] left out 4 of 8 prompts of split train: {LONG}" in said
    assert "tokens of text, split train: they fill no whole block" in said


def test_collect_says_what_it_drops(
    toy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary, said = run(
        tmp_path,
        toy_model,
        capsys,
        ("sft", "collect"),
        collect={"max_prompt_tokens": 64, "train_prompts": 2, "completions": 3},
    )
    # Of the first three rows the second is long; the other five are not looked at.
    assert f"[collect] left out 1 of 3 prompts of split train: {LONG}" in said
    assert "[collect] left out 5 of 8 prompts of split train: more than train_prompts 2" in said
    assert f"[collect] left out 2 of 4 prompts of split validation: {LONG}" in said
    assert summary["stages"]["collect"]["prompts"] <= 4


def test_evaluate_counts_what_its_test_set_lacks(
    toy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gold = {"use": "python", "path": "reward.py"}
    summary, said = run(
        tmp_path,
        toy_model,
        capsys,
        ("sft", "ppo", "evaluate"),
        ppo={"reward": gold, "steps": 1},
        evaluate={"max_prompt_tokens": 64, "reward": None},
    )
    found = summary["stages"]["evaluate"]["left_out"]
    assert found[f"prompts of split test: {LONG}"] == 3
    assert any("pretraining_tokens 256" in reason for reason in found)
    assert f"[evaluate] left out 3 of 6 prompts of split test: {LONG}" in said
    assert "[ppo] left out" in said  # the tail of its text; all its prompts are used
    assert "[ppo] left out 4" not in said


def test_empty_completions_are_counted(
    toy_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A decoder that writes nothing for most samples; the counts are of the file written."""
    from rlhf_kit_hf.tokenizer import ChatTokenizer

    decode = ChatTokenizer.decode
    # An empty answer for all that begin with an even token.
    monkeypatch.setattr(
        ChatTokenizer, "decode", lambda self, t: "" if t[0] % 2 == 0 else decode(self, t)
    )
    summary, said = run(tmp_path, toy_model, capsys, ("sft", "collect"), collect={"completions": 3})
    found = summary["stages"]["collect"]
    path = tmp_path / "run" / "stages" / "collect" / "comparisons.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    asked = LENGTHS["train"] + LENGTHS["validation"]
    kept = sum(len(row["completions"]) for row in rows)
    assert 0 < len(rows) < asked and kept < 3 * len(rows)
    why = "prompts: fewer than two completions that say something"
    assert found["left_out"][why] == asked - len(rows)
    assert sum(v for k, v in found["left_out"].items() if k.startswith("completions")) == (
        3 * asked - kept
    )
    assert f"[collect] left out {asked - len(rows)} of {asked} {why}" in said


def test_nothing_left_out_is_not_mentioned() -> None:
    from rlhf_kit.stagekit.left_out import LeftOut

    left_out = LeftOut()
    left_out.note(0, 5, "prompts", "too long")
    assert left_out.summary() == {}


def test_answers_that_do_not_read_back_are_left_out(
    toy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An answer whose text is cut into other pieces, one of which ends it: no later stage reads it.

    The toy's tokens are bytes. One that is no letter alone becomes U+FFFD, whose bytes are others.
    """
    end = toy_tokenizer()("\ufffd")["input_ids"][0]
    path = write_toy_recipe(
        tmp_path / "project",
        toy_model,
        "hydra",
        collect={"completions": 12, "sampling": {"max_new_tokens": 3}},
    )
    values = yaml.safe_load(path.read_text())
    values["model"]["end_tokens"] = ["<|im_end|>", end]
    values["stages"] = {name: values["stages"][name] for name in ("sft", "collect", "reward_model")}
    used = json.dumps(values["stages"])
    kept = ("prompts", "demonstrations")
    values["data"] = {
        name: block for name, block in values["data"].items() if f'"{name}"' in used or name in kept
    }
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    resolved, loaded, _ = open_recipe(path)
    capsys.readouterr()
    summary = run_recipe(resolved, loaded, out=tmp_path / "run", plain=True)
    written = tmp_path / "run" / "stages" / "collect" / "comparisons.jsonl"
    texts = [
        t for line in written.read_text().splitlines() for t in json.loads(line)["completions"]
    ]
    assert texts
    assert not any("\ufffd" in text for text in texts)
    left_out = summary["stages"]["collect"]["left_out"]
    assert any("ending too early when read again" in reason for reason in left_out)
    assert "reward_model" in summary["stages"]

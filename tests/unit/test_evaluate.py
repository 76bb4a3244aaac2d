"""`evaluate`: any number of policies, each against the baseline's answers to the same prompts."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rlhf_kit_evaluation.evaluate import Evaluate, Scored, wins
from rlhf_kit_evaluation.options import EvaluateOptions
from toys import write_toy_recipe

from rlhf_kit.components import Component, Part, StageRef
from rlhf_kit.errors import PluginError, RecipeError
from rlhf_kit.recipe import open_recipe, refs_of
from rlhf_kit.run import run_recipe
from rlhf_kit.summary import closing_table
from rlhf_kit.testing import part

GOLD = {"use": "python", "path": "reward.py"}


def project(folder: Path, model: Path, memory: str, **evaluate: Any) -> Path:
    """SFT, PPO and the evaluation; without a reward model."""
    path = write_toy_recipe(folder, model, memory)
    values = yaml.safe_load(path.read_text())
    stages = {name: values["stages"][name] for name in ("sft", "ppo", "evaluate")}
    stages["ppo"] |= {"reward": GOLD, "steps": 1}
    stages["evaluate"] |= {"reward": None, **evaluate}
    values["stages"] = stages
    del values["data"]["comparisons"]
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def evaluated(path: Path, out: Path) -> dict[str, Any]:
    resolved, loaded, _ = open_recipe(path)
    return run_recipe(resolved, loaded, out=out, plain=True)


@pytest.mark.parametrize("memory", ["hydra", "lora", "full"])
def test_several_candidates(
    toy_model: Path, tmp_path: Path, memory: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"same": "sft", "trained": "ppo"}
    recipe = project(tmp_path / "project", toy_model, memory, candidates=names)
    summary = evaluated(recipe, tmp_path / "run")
    measured = {key: value for key, value in summary["stages"]["evaluate"].items()}
    for key in ("gold_score", "response_length", "finished", "perplexity"):
        assert list(measured[key]) == ["baseline", "same", "trained"], key
    for key in ("win_rate", "win_rate_ci", "kl"):
        assert list(measured[key]) == ["same", "trained"], key
    assert measured["kl"]["same"] == 0.0  # it is the baseline
    assert measured["kl"]["trained"] != 0.0
    assert measured["perplexity"]["same"] == measured["perplexity"]["baseline"]
    assert measured["perplexity"]["trained"] != measured["perplexity"]["baseline"]

    rows = json.loads((tmp_path / "run/stages/evaluate/samples.json").read_text())
    prompts = [json.loads(x) for x in (recipe.parent / "prompts.jsonl").read_text().splitlines()]
    held_out = [row["prompt"] for row in prompts if row["split"] == "test"]
    assert [row["prompt"] for row in rows] == [text for text in held_out for _ in range(2)]
    for name in ("baseline", "same", "trained"):
        scores = torch.tensor([row["gold"][name] for row in rows])
        assert scores.mean().item() == pytest.approx(measured["gold_score"][name], abs=1e-6)
        assert all(isinstance(row["responses"][name], str) for row in rows)
    for name in ("same", "trained"):  # paired: row by row
        won = [
            1.0 if row["gold"][name] > row["gold"]["baseline"] else 0.0
            for row in rows
            if row["gold"][name] != row["gold"]["baseline"]
        ]
        ties = len(rows) - len(won)
        assert measured["win_rate"][name] == pytest.approx((sum(won) + ties / 2) / len(rows))

    table = closing_table(summary)
    assert " to " in table["win_rate_ci.trained"]
    assert {"gold_score.baseline", "gold_score.same", "kl.trained"} <= table.keys()
    shown = capsys.readouterr().err
    said = shown[shown.index("[evaluate] prompt: ") :].splitlines()
    assert [line.split()[1] for line in said[1:4]] == ["baseline", "same", "trained"]


def test_no_more_than_the_baseline_and_one_candidate(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`full` has a model for each role."""
    from transformers import LlamaForCausalLM

    def alive() -> int:
        gc.collect()
        return sum(type(x) is LlamaForCausalLM for x in gc.get_objects())

    held: list[int] = []
    row, before = Evaluate._row, alive()  # of other tests

    def counting(self: Evaluate, *args: Any, **kwargs: Any) -> Any:
        found = row(self, *args, **kwargs)
        held.append(alive() - before)
        return found

    monkeypatch.setattr(Evaluate, "_row", counting)
    names = {"one": "ppo", "two": "sft", "three": "ppo"}
    evaluated(project(tmp_path / "p", toy_model, "full", candidates=names), tmp_path / "run")
    assert held == [1, 2, 2, 2]  # the baseline is judged before any candidate is loaded


def test_the_baseline_may_be_the_pretrained_model(toy_model: Path, tmp_path: Path) -> None:
    path = project(tmp_path / "project", toy_model, "lora", baseline=None)
    summary = evaluated(path, tmp_path / "run")
    assert summary["kl"].keys() == {"ppo"}
    assert summary["perplexity"]["baseline"] != summary["perplexity"]["ppo"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("evaluate.candidates={}", "stages.evaluate.candidates"),
        ("evaluate.candidates=ppo", "stages.evaluate.candidates"),
        ("evaluate.candidates.other=pppo", "'pppo' names no stage; did you mean 'ppo'?"),
        ("evaluate.candidates.other=evaluate", "is not an earlier stage"),
        ("evaluate.candidates.other=3", "candidates.other: is 3; should be the id of an earlier"),
        (
            "evaluate.candidates.baseline=ppo",
            "candidates.baseline: is 'baseline'; should",
        ),
        ("evaluate.candidates.other=reward", "produces reward_model, not policy"),
        ("evaluate.sft=sft", "stages.evaluate.sft: unknown key"),
    ],
)
def test_a_wrong_candidate_is_refused_at_its_place(
    toy_model: Path, tmp_path: Path, change: str, said: str
) -> None:
    path = write_toy_recipe(tmp_path, toy_model, "hydra")
    path.write_text(path.read_text().replace("  reward_model:\n", "  reward:\n"))
    path.write_text(path.read_text().replace("from: reward_model", "from: reward"))
    open_recipe(path)
    with pytest.raises(RecipeError) as caught:
        open_recipe(path, [change])
    assert said in str(caught.value)
    assert "command line: stages.evaluate." in str(caught.value)


def test_candidates_are_what_a_stage_needs(toy_recipe: Callable[..., Path]) -> None:
    resolved, _, _ = open_recipe(toy_recipe(), ["evaluate.baseline=null"])
    stage = resolved.stages["evaluate"]
    assert "ppo" in stage.needs
    assert StageRef("ppo") in refs_of(stage.part)


def test_wins_are_counted_sample_by_sample() -> None:
    nothing: Part = part(Component("", "", ":"))
    options = EvaluateOptions.model_construct(
        prompts=nothing, gold=nothing, samples_per_prompt=2, tie_margin=0.1
    )
    candidate = Scored([1.0, 0.0, 0.5, 0.55])
    baseline = Scored([0.0, 1.0, 0.0, 0.5])
    # A win and a loss; a win and a tie, which counts half.
    assert wins(candidate, baseline, options).tolist() == [0.5, 0.75]
    # Without the loss; and without a pair of the second prompt.
    partial = Scored([1.0, None, None, 0.55])
    assert partial.mean() == pytest.approx(0.775)
    assert wins(partial, baseline, options).tolist() == [1.0, 0.5]
    assert wins(partial, Scored([None, 1.0, 0.0, 0.5]), options).tolist() == [0.5]
    with pytest.raises(PluginError, match="no answer has a score together with the baseline's"):
        wins(partial, Scored([None, 1.0, 0.0, None]), options)


@pytest.mark.parametrize(("batch", "cut_at"), [(2, 1), (2, 3), (2, 5), (6, 2), (6, 3)])
def test_it_goes_on_from_where_it_was_cut(
    batch: int,
    cut_at: int,
    toy_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whichever policy it is at. Of three prompts a chunk, one is of one policy, two of another."""
    recipe = project(
        tmp_path / "project",
        toy_model,
        "lora",
        candidates={"same": "sft", "trained": "ppo"},
        sampling={"max_new_tokens": 6, "batch_size": batch},
    )
    whole = evaluated(recipe, tmp_path / "whole")["stages"]["evaluate"]
    kept, calls = Evaluate._row, [0]

    def cut(self: Evaluate, *inputs: Any) -> dict[str, Any]:
        calls[0] += 1
        if calls[0] > cut_at:
            raise KeyboardInterrupt
        return kept(self, *inputs)

    path = recipe.with_name("eager.yaml")
    path.write_text(recipe.read_text() + "checkpoint: {steps: 1}\n")
    with monkeypatch.context() as patch:
        patch.setattr(Evaluate, "_row", cut)
        with pytest.raises(KeyboardInterrupt):
            evaluated(path, tmp_path / "parts")
    capsys.readouterr()
    found = evaluated(path, tmp_path / "parts")["stages"]["evaluate"]
    said = capsys.readouterr().err
    assert "[ppo] finished already" in said
    assert "[evaluate] going on after prompt" in said
    assert found == whole
    rows = [tmp_path / name / "stages/evaluate/samples.json" for name in ("whole", "parts")]
    assert rows[0].read_text() == rows[1].read_text()

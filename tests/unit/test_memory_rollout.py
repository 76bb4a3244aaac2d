"""What is held while PPO and evaluate run, with one long prompt among short ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import live_tensors
import pytest
import torch
import yaml
from toys import prompts, respond, write_toy_recipe

from rlhf_kit.recipe import open_recipe
from rlhf_kit.run import run_recipe
from rlhf_kit.types import PPOBatch, Samples

WIDTH, LONG, NEW = 32, 150, 6  # of the toy's states; characters of the long prompt; new tokens
CHUNK, ROWS = 4, 12


def texts_of(split: str) -> list[str]:
    """The prompts of a split; the first one is long."""
    return [f"Say {i} {split}" + "?" * LONG * (i == 0) for i in range(ROWS)]


def watched(folder: Path, model: Path, out: Path, **stages: dict[str, Any]) -> list[int]:
    """Run sft and ``stages``; bytes of activations at each call of the reward on a chunk."""
    path = write_toy_recipe(folder, model, "hydra")
    (folder / "witness.py").write_text(live_tensors.WITNESS.format(width=WIDTH))
    rows = [
        {"prompt": text, "split": split}
        for split in ("train", "validation", "test")
        for text in texts_of(split)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = yaml.safe_load(path.read_text())
    values["stages"] = {"sft": values["stages"]["sft"], **stages}
    values["data"] = {name: values["data"][name] for name in ("demonstrations", "prompts")}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    live_tensors.SEEN.clear()
    resolved, loaded, _ = open_recipe(path)
    run_recipe(resolved, loaded, out=out, plain=True)
    return [held for count, held in live_tensors.SEEN if count == CHUNK]


WITNESS = {"use": "python", "path": "witness.py"}
SAMPLING = {"max_new_tokens": NEW, "batch_size": CHUNK}
PPO = {
    "use": "ppo_ptx",
    "from": "sft",
    "reward": WITNESS,
    "gate": {"check": False},
    "rollout_batch": ROWS,
    "minibatch": ROWS // 2,
    "micro_batch": 2,
    "sampling": SAMPLING,
}


def trunk_bytes(tokenizer: Any, split: str) -> tuple[int, int]:
    """Of all prompts with their responses, without padding; and of one padded chunk."""
    lengths = [len(tokenizer.prompt({"prompt": text})) + NEW for text in texts_of(split)]
    assert max(lengths) > 2.5 * sorted(lengths)[-2]
    return 4 * WIDTH * sum(lengths), 4 * WIDTH * CHUNK * max(lengths)


def test_ppo_holds_one_rollout_and_one_chunk(
    context_of: Callable[..., Any], toy_model: Path, tmp_path: Path
) -> None:
    held = watched(tmp_path / "project", toy_model, tmp_path / "run", ppo={**PPO, "steps": 3})
    assert len(held) == 3 * ROWS // CHUNK
    rollout, chunk = trunk_bytes(context_of("hydra").tokenizer, "train")
    assert 0 < max(held) <= rollout + chunk


def test_evaluate_keeps_no_activations(
    context_of: Callable[..., Any], toy_model: Path, tmp_path: Path
) -> None:
    evaluate = {
        "use": "evaluate",
        "baseline": "sft",
        "candidates": {"ppo": "ppo"},
        "gold": WITNESS,
        "samples_per_prompt": 1,
        "sampling": SAMPLING,
    }
    ppo = {**PPO, "steps": 1, "reward": {"use": "python", "path": "reward.py"}}
    held = watched(tmp_path / "project", toy_model, tmp_path / "run", ppo=ppo, evaluate=evaluate)
    assert len(held) == 2 * ROWS // CHUNK  # of both policies
    _, chunk = trunk_bytes(context_of("hydra").tokenizer, "test")
    assert 0 < max(held) <= chunk


@pytest.fixture
def sampled(context_of: Callable[..., Any]) -> tuple[Any, Samples]:
    """A policy and its responses to short prompts and a long one."""
    context = context_of("hydra")
    policy = context.memory().policy(None)
    asked = prompts(context.tokenizer, ("Hi", "?" * LONG, "Why?", "Say something nice."))
    return policy, respond(policy, asked, 7, key=3)


def batch_of(samples: Samples) -> PPOBatch:
    figures = torch.arange(5.0 * samples.mask.numel()).view(5, *samples.mask.shape)
    return PPOBatch(samples, *figures, samples.mask)


def test_a_micro_batch_is_as_wide_as_its_longest_row(sampled: tuple[Any, Samples]) -> None:
    policy, samples = sampled
    batch = batch_of(samples)
    with torch.no_grad():
        whole = policy.evaluate(samples).logprobs
    for rows in ([0, 2], [1], [3, 1, 0], [2]):
        index = torch.tensor(rows)
        found = batch.select(index)
        assert found.samples.prompts.mask.any(0).all()  # no column is padding alone
        assert found.mask.any(0).all()
        places = found.mask
        for name in ("logprobs", "reference_logprobs", "values", "advantages", "returns"):
            own, before = getattr(found, name), getattr(batch, name)
            assert own.shape == found.mask.shape
            assert torch.equal(own[places], before[index][batch.mask[index]])
        with torch.no_grad():
            logprobs = policy.evaluate(found.samples).logprobs
        torch.testing.assert_close(
            logprobs[places], whole[index][batch.mask[index]], rtol=0, atol=2e-5
        )
        assert found.samples.responses == [samples.responses[i] for i in rows]


def test_a_place_after_the_end_is_kept(sampled: tuple[Any, Samples]) -> None:
    """Where a recipe puts the score there, the longest row of a micro-batch has it too."""
    _, samples = sampled
    mask = samples.response_mask.clone()
    mask[:, 3:] = False  # all end before the last column
    samples = replace(samples, response_mask=mask, trunk=None)
    places = torch.zeros_like(mask)
    places[:, :4] = True
    batch = replace(batch_of(samples), places=places)
    found = batch.select(torch.tensor([2]))
    assert found.places.tolist() == [[True] * 4]
    assert found.mask.tolist() == [[True] * 3 + [False]]
    assert found.samples.response_tokens.shape == (1, 4)


def test_selections_share_the_trunk(sampled: tuple[Any, Samples]) -> None:
    """Every reader gets the tensor that decoding captured, and nothing of it is copied."""
    _, samples = sampled
    assert samples.trunk is not None
    lengths = samples.token_mask.sum(1).tolist()
    assert [len(row) for row in samples.trunk.rows] == lengths
    chosen = samples.select(torch.tensor([3, 0]))
    assert chosen.trunk is not None
    found = [row.data_ptr() for row in chosen.trunk.rows]
    assert found == [samples.trunk.rows[i].data_ptr() for i in (3, 0)]
    joined = Samples.join([chosen, samples.select(torch.tensor([1, 2]))])
    assert joined.trunk is not None
    assert [row.data_ptr() for row in joined.trunk.rows][:2] == found
    padded = chosen.padded_trunk()
    assert padded is not None and padded.states.shape == (*chosen.tokens.shape, WIDTH)
    for i, mask in enumerate(chosen.token_mask):
        assert torch.equal(padded.states[i][mask], chosen.trunk.rows[i])
        assert not padded.states[i][~mask].any()


def test_a_trunk_of_other_tokens_is_refused(sampled: tuple[Any, Samples]) -> None:
    _, samples = sampled
    assert samples.trunk is not None
    other = replace(samples, trunk=samples.trunk.select([1, 0, 2, 3]))
    with pytest.raises(ValueError, match="it belongs to other tokens"):
        other.padded_trunk()

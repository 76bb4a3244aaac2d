"""LoRA: an adapter per role over one backbone, loadable by plain peft."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from rlhf_kit_hf.sources import PretrainedSource
from toys import ANSWERS, hand_logprobs, plain_model, texts, train, trained_folder


def test_plain_peft_loads_the_folder(
    context_of: Callable[..., Any], toy_model: Path, tmp_path: Path
) -> None:
    context = context_of("lora")
    folder = trained_folder(context, tmp_path)
    plain = PeftModel.from_pretrained(plain_model(toy_model), folder).eval()
    batch = texts(context.tokenizer, *ANSWERS)
    with torch.no_grad():
        found = context.memory().policy(folder).next_token_logprobs(batch)
        base = context.memory().policy(None).next_token_logprobs(batch)
    assert (found - base).abs().max() > 0.1
    for i in range(len(batch)):
        begin = int(batch.target[i].long().argmax())
        row = batch.tokens[i][batch.mask[i]].tolist()
        expected = hand_logprobs(plain, row[:begin], row[begin:], 1.0)
        torch.testing.assert_close(
            found[i][batch.predicted[i]].double(), expected, rtol=0, atol=1e-4
        )


def test_training_one_role_leaves_the_backbone_and_the_other_roles(
    context_of: Callable[..., Any], tmp_path: Path
) -> None:
    context = context_of("lora")
    sft = trained_folder(context, tmp_path)
    memory = context.memory()
    reward = memory.scorer(sft)
    policy = memory.policy(sft)
    mine = {id(p) for p in policy.parameters()}
    before = {n: p.detach().clone() for n, p in memory._peft.named_parameters()}
    batch = texts(context.tokenizer, *ANSWERS)
    with torch.no_grad():
        score = reward.score(batch)
    train(policy, batch)
    changed = {n for n, p in memory._peft.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert changed <= {n for n, p in memory._peft.named_parameters() if id(p) in mine}
    with torch.no_grad():
        assert torch.equal(reward.score(batch), score)


def test_three_roles_cost_three_adapters(context_of: Callable[..., Any]) -> None:
    memory = context_of("lora", rank=2).memory()
    policy, reward = memory.policy(None), memory.scorer(None)
    # q, k, v, o, gate, up, down of 4 layers: rank * (inputs + outputs).
    layer = (32 + 32) + 2 * (32 + 16) + (32 + 32) + 3 * (32 + 64)
    assert sum(p.numel() for p in policy.parameters()) == 4 * 2 * layer
    assert sum(p.numel() for p in reward.parameters()) == 4 * 2 * layer + 32 + 1

    def names() -> set[str]:
        return {n.split(".")[-2] for n, _ in memory._peft.named_parameters() if "lora_" in n}

    assert names() == {"policy", "reward"}
    memory.reference(None)  # supervised stages never ask for one
    assert names() == {"policy", "reference", "reward"}


def test_every_process_writes_the_same_config(
    context_of: Callable[..., Any], tmp_path: Path
) -> None:
    """peft keeps the names in a set, whose order depends on the process."""
    context_of("lora").memory().policy(None).save(tmp_path)
    names = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert len(names) == 7
    assert names == sorted(names)


@pytest.mark.parametrize("modules", ["[q_proj, v_proj]", "all-linear", ".*(q|v)_proj"])
def test_target_modules(context_of: Callable[..., Any], modules: str, tmp_path: Path) -> None:
    memory = context_of("lora", target_modules=modules).memory()
    policy = memory.policy(None)
    adapted = {n.split(".")[-4] for n, _ in memory._peft.named_parameters() if "lora_A" in n}
    wanted = {"q_proj", "v_proj"}
    assert adapted > wanted if modules == "all-linear" else adapted == wanted
    assert "lm_head" not in adapted
    policy.save(tmp_path)
    found = memory.policy(tmp_path).state_dict()
    same = zip(found.values(), policy.state_dict().values(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in same)


def test_the_source_is_hashed_once(
    context_of: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be large; roles share what it is."""
    calls: list[object] = []
    fingerprint = PretrainedSource.fingerprint
    memory = context_of("lora").memory()
    monkeypatch.setattr(
        PretrainedSource, "fingerprint", lambda self: (calls.append(self), fingerprint(self))[1]
    )
    policy = memory.policy(None)
    policy.save(tmp_path)
    memory.reference(tmp_path)
    assert len(calls) == 1


def test_a_fresh_adapter_is_the_pretrained_model(
    context_of: Callable[..., Any], toy_model: Path
) -> None:
    context = context_of("lora")
    batch = texts(context.tokenizer, *ANSWERS)
    with torch.no_grad():
        lora = context.memory().policy(None).next_token_logprobs(batch)
        full = context_of("full").memory().policy(None).next_token_logprobs(batch)
    assert torch.equal(lora, full)

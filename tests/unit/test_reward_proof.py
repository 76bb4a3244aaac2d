"""The proof beside a saved reward model: loading recomputes a few scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rlhf_kit_hf.proof import PROOF, check_proof, write_proof
from safetensors.torch import load_file, save_file
from torch import Tensor
from toys import ANSWERS, texts

from rlhf_kit.errors import NumericsError
from rlhf_kit.types import TextBatch

CPU = torch.device("cpu")


def saved(context: Any, folder: Path) -> TextBatch:
    model = context.memory().scorer(None, pooling="mean")
    model.shift(-0.5)
    batch = texts(context.tokenizer, *ANSWERS)
    model.save(folder, proof=batch)
    return batch


@pytest.mark.parametrize("memory", ["full", "lora", "hydra"])
def test_proof_holds_what_was_scored(
    context_of: Callable[..., Any], tmp_path: Path, memory: str
) -> None:
    context = context_of(memory)
    batch = saved(context, tmp_path)
    content = json.loads((tmp_path / PROOF).read_text())
    assert content["tokens"] == batch.tokens.tolist()
    assert content["mask"] == batch.mask.long().tolist()
    assert content["target"] == batch.target.long().tolist()
    assert (content["dtype"], content["device"]) == ("float32", "cpu")
    loaded = context.memory().scorer(tmp_path, trainable=False)
    with torch.no_grad():
        scores = loaded.score(batch)
    assert scores.tolist() == pytest.approx(content["scores"], abs=1e-5)


@pytest.mark.parametrize("memory", ["full", "hydra", "lora"])
@pytest.mark.parametrize("part", ["head", "body"])
def test_other_weights_are_refused(
    context_of: Callable[..., Any], tmp_path: Path, memory: str, part: str
) -> None:
    context = context_of(memory)
    saved(context, tmp_path)
    bodies = [p for p in tmp_path.glob("*.safetensors") if p.name != "reward_head.safetensors"]
    (path,) = [tmp_path / "reward_head.safetensors"] if part == "head" else bodies
    weights = load_file(path)
    save_file({k: v + 0.05 for k, v in weights.items()}, path, metadata={"format": "pt"})
    with pytest.raises(NumericsError, match=rf"{tmp_path}: .* by up to \d"):
        context.memory().scorer(tmp_path)


def test_a_folder_without_a_proof_loads(context_of: Callable[..., Any], tmp_path: Path) -> None:
    context = context_of("full")
    context.memory().scorer(None).save(tmp_path)
    context.memory().scorer(tmp_path)
    assert not (tmp_path / PROOF).exists()


def scoring(*values: float) -> Callable[[TextBatch], Tensor]:
    return lambda _: torch.tensor(values)


@pytest.mark.parametrize(
    ("then", "now", "gap", "holds"),
    [
        (torch.float32, torch.float32, 0.9e-4, True),
        (torch.float32, torch.float32, 1.2e-4, False),
        (torch.bfloat16, torch.bfloat16, 0.29, True),  # a tenth of the range from -1 to 2
        (torch.bfloat16, torch.bfloat16, 0.31, False),
        (torch.float32, torch.bfloat16, 0.29, True),
        (torch.bfloat16, torch.float32, 0.31, False),
        (torch.float32, torch.float32, float("nan"), False),
    ],
)
def test_how_far_a_score_may_be_off(
    tmp_path: Path, then: torch.dtype, now: torch.dtype, gap: float, holds: bool
) -> None:
    one = torch.ones((3, 1), dtype=torch.bool)
    batch = TextBatch(one.long(), one, one)
    write_proof(tmp_path, scoring(-1.0, 0.0, 2.0), batch, then, CPU)
    moved = scoring(-1.0, gap, 2.0)
    if holds:
        check_proof(tmp_path, moved, now, CPU)
    else:
        with pytest.raises(NumericsError) as caught:
            check_proof(tmp_path, moved, now, CPU)
        assert caught.value.exit_code == 4


def test_large_scores_may_be_off_in_proportion(tmp_path: Path) -> None:
    one = torch.ones((2, 1), dtype=torch.bool)
    write_proof(
        tmp_path, scoring(100.0, 101.0), TextBatch(one.long(), one, one), torch.float32, CPU
    )
    check_proof(tmp_path, scoring(100.009, 101.0), torch.float32, CPU)
    with pytest.raises(NumericsError):
        check_proof(tmp_path, scoring(100.02, 101.0), torch.float32, CPU)

"""The tensor types: selecting and splitting rows loses nothing."""

from __future__ import annotations

import pytest
import torch

from rlhf_kit.testing import made_up_samples
from rlhf_kit.types import (
    Advantages,
    ComparisonBatch,
    PPOBatch,
    Prompts,
    Rollout,
    TextBatch,
    check_shape,
)


def test_check_shape_binds_and_refuses() -> None:
    assert check_shape(torch.zeros(2, 3), "B R", "x") == {"B": 2, "R": 3}
    assert check_shape(torch.zeros(()), "", "x") == {}
    with pytest.raises(ValueError, match=r"x: expected \[B, R\], got shape \[2\]"):
        check_shape(torch.zeros(2), "B R", "x")
    with pytest.raises(ValueError, match=r"x: expected \[B, R\] with R=4, got shape \[2, 3\]"):
        check_shape(torch.zeros(2, 3), "B R", "x", R=4)
    with pytest.raises(ValueError, match="N=2"):
        check_shape(torch.zeros(2, 3), "N N", "x")


def test_prompts_repeat_in_groups() -> None:
    tokens = torch.tensor([[1, 2], [3, 4]])
    prompts = Prompts(tokens, tokens > 1, [{"id": "a"}, {"id": "b"}], torch.tensor([5, 6]))
    found = prompts.repeat(3)
    assert len(found) == 6
    assert found.group.tolist() == [5, 5, 5, 6, 6, 6]
    assert [row["id"] for row in found.rows] == ["a"] * 3 + ["b"] * 3
    assert found.tokens.tolist() == [[1, 2]] * 3 + [[3, 4]] * 3
    assert found.mask[:3].tolist() == [[False, True]] * 3


def test_samples_decode_what_is_valid() -> None:
    samples = made_up_samples(["yes", "", "größer"])
    assert samples.responses == ["yes", "", "größer"]
    assert samples.responses is samples.responses  # decoded once
    assert samples.tokens.shape[1] == samples.prompts.tokens.shape[1] + 6  # the last one has no end
    assert samples.token_mask.sum().item() == samples.prompts.mask.sum() + samples.mask.sum()


def test_samples_select_and_split() -> None:
    samples = made_up_samples()
    samples.responses  # noqa: B018 - what is cached must not survive a selection
    found = samples.select(torch.tensor([3, 0]))
    assert found.responses == [samples.responses[3], samples.responses[0]]
    assert found.rows == [samples.rows[3], samples.rows[0]]
    assert found.group.tolist() == [3, 0]
    parts = list(samples.split(4))
    assert [len(part) for part in parts] == [4, 2]
    assert [text for part in parts for text in part.responses] == samples.responses


def test_ppo_batch_keeps_rows_together() -> None:
    samples = made_up_samples()
    values = torch.arange(6.0)[:, None].expand(samples.mask.shape)
    rollout = Rollout(samples, values + 1, values + 2, values + 3, torch.zeros(6))
    assert torch.equal(rollout.mask, samples.response_mask)
    assert torch.equal(rollout.group, samples.group)
    batch = PPOBatch.of(rollout, Advantages(values + 4, values + 5))
    (first, second) = batch.select(torch.tensor([5, 1, 2])).split(2)
    assert [len(first.samples), len(second.samples)] == [2, 1]
    assert second.samples.responses == [samples.responses[2]]
    for offset, name in ((1, "logprobs"), (3, "values"), (4, "advantages"), (5, "returns")):
        assert getattr(first, name)[:, 0].tolist() == [5 + offset, 1 + offset]
    bare = PPOBatch(samples, values, None, values, values).select(torch.tensor([0]))
    assert bare.values is None


def texts() -> TextBatch:
    mask = torch.tensor(
        [[True, True, True, True], [True, True, False, False], [True] * 3 + [False]]
    )
    target = mask & torch.tensor([False, False, True, True])
    tokens = torch.arange(12).view(3, 4)
    return TextBatch(tokens, mask, target, trunk=tokens[:, :, None].float())


def test_texts_predict_the_next_token() -> None:
    assert texts().predicted.tolist() == [
        [False, True, True],
        [False, False, False],
        [False, True, False],
    ]


def test_texts_select_cuts_to_the_longest() -> None:
    found = texts().select(torch.tensor([1, 2]))
    assert found.tokens.tolist() == [[4, 5, 6], [8, 9, 10]]
    assert found.trunk is not None and found.trunk.shape == (2, 3, 1)
    assert found.target.shape == found.mask.shape == (2, 3)
    assert [len(part) for part in texts().split(2)] == [2, 1]
    assert len(texts().select(torch.tensor([], dtype=torch.long))) == 0


def comparisons() -> ComparisonBatch:
    mask = torch.tensor([[True, True, False], [True, True, True]])
    index = torch.tensor([[0, 1, 0], [2, 3, 4]])
    tokens = torch.arange(10).view(5, 2)
    ones = torch.ones_like(tokens, dtype=torch.bool)
    ranks = torch.tensor([[0, 1, 0], [2, 0, 1]])
    return ComparisonBatch(TextBatch(tokens, ones, ones), index, ranks, mask, ranks.float())


def test_comparisons_group_scores() -> None:
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], requires_grad=True)
    found = comparisons().grouped(scores)
    assert found.tolist() == [[1.0, 2.0, 0.0], [3.0, 4.0, 5.0]]
    found.sum().backward()
    assert scores.grad is not None and scores.grad.tolist() == [1.0] * 5


def test_comparisons_take_their_own_texts_along() -> None:
    first, second = comparisons().split(1)
    assert first.texts.tokens.tolist() == [[0, 1], [2, 3]]
    assert second.texts.tokens.tolist() == [[4, 5], [6, 7], [8, 9]]
    assert second.index.tolist() == [[0, 1, 2]]
    swapped = comparisons().select(torch.tensor([1, 0]))
    scores = swapped.texts.tokens[:, 0].float()
    assert swapped.grouped(scores).tolist() == [[4.0, 6.0, 8.0], [0.0, 2.0, 0.0]]
    assert swapped.gold is not None and swapped.gold.tolist() == [[2.0, 0.0, 1.0], [0.0, 1.0, 0.0]]

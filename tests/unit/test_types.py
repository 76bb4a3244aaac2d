"""The tensor types: selecting and splitting rows loses nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlhf_kit.testing import made_up_samples
from rlhf_kit.types import (
    ComparisonBatch,
    PackedTexts,
    PaddedTrunk,
    PPOBatch,
    Prompts,
    Rollout,
    TextBatch,
    TrunkId,
    check_shape,
)

ORIGIN = TrunkId("toy", 2, "float32")


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
    rows = [{"id": "a"}, {"id": "b"}]
    prompts = Prompts(tokens, tokens > 1, rows, torch.tensor([5, 6]), torch.tensor([3, 0]))
    found = prompts.repeat(3)
    assert len(found) == 6
    assert found.group.tolist() == [5, 5, 5, 6, 6, 6]
    assert found.stream.tolist() == [9, 10, 11, 0, 1, 2]
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
    batch = PPOBatch(
        rollout.samples,
        rollout.logprobs,
        rollout.reference_logprobs,
        rollout.values,
        values + 4,
        values + 5,
        rollout.mask,
    )
    (first, second) = batch.select(torch.tensor([5, 1, 2])).split(2)
    assert [len(first.samples), len(second.samples)] == [2, 1]
    assert second.samples.responses == [samples.responses[2]]
    for offset, name in enumerate(
        ("logprobs", "reference_logprobs", "values", "advantages", "returns"), 1
    ):
        assert getattr(first, name)[:, 0].tolist() == [5 + offset, 1 + offset]
    bare = replace(batch, values=None).select(torch.tensor([0]))
    assert bare.values is None


def test_ppo_batch_says_what_losses_count() -> None:
    samples = made_up_samples(samples_per_prompt=2)
    figures = torch.zeros(samples.mask.shape)
    places = torch.ones_like(samples.mask)
    batch = PPOBatch(samples, figures - 1, figures, None, figures, figures, places)
    assert batch.sampled.mask is batch.chosen.mask is samples.response_mask
    assert batch.sampled.old_logprobs is batch.logprobs
    assert batch.sampled.group is samples.group
    assert batch.valued.mask is places


def texts() -> TextBatch:
    mask = torch.tensor(
        [[True, True, True, True], [True, True, False, False], [True] * 3 + [False]]
    )
    target = mask & torch.tensor([False, False, True, True])
    tokens = torch.arange(12).view(3, 4)
    return TextBatch(tokens, mask, target, PaddedTrunk(tokens[:, :, None].float(), ORIGIN))


def test_texts_predict_the_next_token() -> None:
    assert texts().predicted.tolist() == [
        [False, True, True],
        [False, False, False],
        [False, True, False],
    ]


def test_texts_select_cuts_to_the_longest() -> None:
    found = texts().select(torch.tensor([1, 2]))
    assert found.tokens.tolist() == [[4, 5, 6], [8, 9, 10]]
    assert found.trunk is not None and found.trunk.states.shape == (2, 3, 1)
    assert found.target.shape == found.mask.shape == (2, 3)
    assert [len(part) for part in texts().split(2)] == [2, 1]
    assert len(texts().select(torch.tensor([], dtype=torch.long))) == 0


def packed() -> PackedTexts:
    """Prompts 10 11 and 20, with three and two completions; some are empty."""
    texts = PackedTexts.of(
        [[10, 11], [20]], [[[12], [13, 14], [15, 16, 17]], [[21, 22, 23], [], [24]]], pad=0
    )
    trunk = torch.where(texts.mask, texts.tokens, -1)[:, :, None].float()
    return replace(texts, trunk=PaddedTrunk(trunk, ORIGIN))


def test_packed_texts_lay_completions_side_by_side() -> None:
    texts = packed()
    assert texts.tokens.tolist() == [
        [10, 11, 12, 13, 14, 15, 16, 17],
        [20, 21, 22, 23, 24, 0, 0, 0],
    ]
    assert texts.segment.tolist() == [[0, 0, 1, 2, 2, 3, 3, 3], [0, 1, 1, 1, 3, 0, 0, 0]]
    assert texts.positions.tolist() == [[0, 1, 2, 2, 3, 2, 3, 4], [0, 1, 2, 3, 1, 0, 0, 0]]
    assert texts.mask.sum(1).tolist() == [8, 5]
    assert texts.lengths().tolist() == [[1, 2, 3], [3, 0, 1]]
    seen = [texts.tokens[0][see].tolist() for see in texts.visible()[0]]
    assert seen[:2] == [[10], [10, 11]]
    assert seen[2:5] == [[10, 11, 12], [10, 11, 13], [10, 11, 13, 14]]
    assert seen[7] == [10, 11, 15, 16, 17]
    assert texts.visible()[1, [5, 6, 7], [5, 6, 7]].all()  # or a softmax would be NaN
    assert not texts.visible()[1, :5, 5:].any()


def test_packed_texts_unpack() -> None:
    texts, exists = packed().unpacked()
    assert exists.tolist() == [[True] * 3, [True, False, True]]
    assert [row[m].tolist() for row, m in zip(texts.tokens, texts.mask, strict=True)] == [
        [10, 11, 12],
        [10, 11, 13, 14],
        [10, 11, 15, 16, 17],
        [20, 21, 22, 23],
        [20, 24],
    ]
    assert texts.target.sum(1).tolist() == [1, 2, 3, 3, 1]
    assert not texts.target[:3, :2].any() and not texts.target[3:, :1].any()
    assert texts.trunk is not None
    assert torch.equal(texts.trunk.states[texts.mask][:, 0].long(), texts.tokens[texts.mask])
    again = replace(packed(), trunk=None).with_trunk(texts.trunk).trunk
    assert again is not None and again.origin == ORIGIN
    mask = packed().mask
    assert torch.equal(again.states[mask][:, 0].long(), packed().tokens[mask])


def test_packed_texts_select_cuts_to_the_longest() -> None:
    texts = packed().select(torch.tensor([1]))
    assert texts.tokens.shape == texts.visible().shape[:2] == (1, 5)
    assert texts.trunk is not None and texts.trunk.states.shape == (1, 5, 1)
    assert texts.lengths().tolist() == [[3, 0, 1]]  # K stays
    assert [len(part) for part in packed().split(1)] == [1, 1]
    first, second = packed().split(1)
    assert first.unpacked()[0].tokens.shape == (3, 5)
    assert second.unpacked()[1].tolist() == [[True, False, True]]


def test_comparisons_take_their_own_texts_along() -> None:
    ranks = torch.tensor([[2, 0, 1], [1, 0, 0]])
    mask = torch.tensor([[True] * 3, [True, False, True]])
    batch = ComparisonBatch(packed(), ranks, mask, ranks.float())
    assert [len(part) for part in batch.split(1)] == [1, 1]
    swapped = batch.select(torch.tensor([1, 0]))
    assert swapped.texts.tokens[:, 0].tolist() == [20, 10]
    assert swapped.ranks.tolist() == [[1, 0, 0], [2, 0, 1]]
    assert torch.equal(swapped.mask, swapped.texts.lengths() > 0)
    assert swapped.gold is not None and swapped.gold.tolist() == [[1.0, 0.0, 0.0], [2.0, 0.0, 1.0]]
    assert len(swapped) == 2

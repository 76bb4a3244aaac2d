"""Token lists without padding: what goes in comes out, and a batch costs what it holds."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from live_tensors import Peak

from rlhf_kit.ops.sequence import pad
from rlhf_kit.stagekit.batches import answered, read_comparisons, text_blocks
from rlhf_kit.stagekit.left_out import LeftOut
from rlhf_kit.stagekit.prompts import PromptSet
from rlhf_kit.types import Activations, PackedTexts, PaddedTrunk, Ragged, TrunkId

ORIGIN = TrunkId("toy", 2, "float32")


class Letters:
    """A token per character; counts what it is asked."""

    pad_id, eos_id, separator_id, max_length = 0, 1, 1, 10_000
    begin_ids = ()

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def prompt(self, row: dict[str, Any]) -> list[int]:
        self.prompts.append(row["prompt"])
        return self.text(row["prompt"])

    def response(self, text: str, *, finished: bool = True) -> list[int]:
        return self.text(text) + [1] * finished

    def text(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, tokens: list[int]) -> str:
        return "".join(map(chr, tokens))


def tokens_of(count: int, seed: int, longest: int = 9) -> list[list[int]]:
    drawn = random.Random(seed)
    return [
        [drawn.randrange(50_000) for _ in range(drawn.randrange(longest + 1))] for _ in range(count)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_what_goes_in_comes_out(seed: int) -> None:
    drawn = random.Random(seed)
    parts = [tokens_of(drawn.randrange(6), 100 * seed + i) for i in range(3)]
    lists = [tokens for part in parts for tokens in part]
    ragged = Ragged.join([Ragged.of(part) for part in parts])
    assert len(ragged) == len(lists)
    assert [ragged[i] for i in range(len(lists))] == lists
    assert ragged.lengths.tolist() == list(map(len, lists))
    assert ragged.flat.dtype == torch.int32
    chosen = [drawn.randrange(len(lists)) for _ in range(4)] if lists else []
    found = ragged.select(torch.tensor(chosen, dtype=torch.long))
    assert [found[i] for i in range(len(found))] == [lists[i] for i in chosen]
    assert found.flat.data_ptr() == ragged.flat.data_ptr()
    for left in (False, True):
        tokens, mask = found.padded(7, left=left)
        wanted, places = pad([lists[i] for i in chosen], 7, left=left)
        assert torch.equal(tokens, wanted) and torch.equal(mask, places)
        assert tokens.dtype == torch.long


@pytest.mark.parametrize("seed", range(10))
def test_activations_come_back_where_they_were(seed: int) -> None:
    """From whole tensors and from columns as decoding yields them."""
    drawn = torch.Generator().manual_seed(seed)
    rows, left, right = 5, 4, 6
    begins = torch.randint(0, left, (rows,), generator=drawn)
    ends = torch.randint(1, right + 1, (rows,), generator=drawn) + left
    columns = torch.arange(left + right)
    mask = (columns >= begins[:, None]) & (columns < ends[:, None])
    whole = torch.randn((rows, left + right, 3), generator=drawn)
    wanted = torch.where(mask[..., None], whole, 0.0)
    pieces = [whole[:, :left].clone(), *(whole[:, i : i + 1] for i in range(left, left + right))]
    fed = [torch.arange(rows)] * len(pieces)
    for i in range(1, len(pieces)):  # who is not valid any more may have left
        fed[i] = (ends > left + i - 1).nonzero().flatten()
        pieces[i] = pieces[i][fed[i]]
    at_once = Activations.of(PaddedTrunk(whole, ORIGIN), mask)
    for found in (at_once, Activations.of_columns(pieces, mask, fed, ORIGIN)):
        assert torch.equal(found.padded(mask).states, wanted)
        assert found.origin == found.padded(mask).origin == ORIGIN
        storage = found.rows[0].untyped_storage()
        assert storage.nbytes() == 4 * 3 * int(mask.sum())
        assert all(row.untyped_storage().data_ptr() == storage.data_ptr() for row in found.rows)
    assert not pieces


def test_columns_and_rows_are_never_both_whole() -> None:
    mask = torch.ones((8, 100), dtype=torch.bool)
    with Peak() as memory:
        pieces = [torch.ones((8, 1, 64)) for _ in range(100)]
        size = 8 * 100 * 64 * 4
        assert memory.bytes == size
        found = Activations.of_columns(pieces, mask, [torch.arange(8)] * 100, ORIGIN)
        assert memory.peak <= 2.1 * size  # gathered in one tensor first, it would be three
        del pieces
        assert len(found) == 8
        assert memory.bytes <= 1.1 * size


def long_and_short(count: int) -> list[dict[str, Any]]:
    rows = [{"prompt": "ab", "response": "cd", "completions": ["e", "fg"], "ranks": [0, 1]}]
    rows *= count
    return [{**rows[0], "prompt": "x" * 4000}, *rows[1:]]


def held(tokenizer: Letters, make: Any) -> tuple[int, Any]:
    with Peak() as memory:
        found = make(long_and_short(4000), tokenizer)
        return memory.bytes + _flat(found), found


def _flat(found: Any) -> int:
    """Buffers that torch did not allocate are not seen by ``Peak``."""
    ragged = [x for x in vars(found).values() if isinstance(x, Ragged)]
    return sum(x.flat.nbytes for x in ragged)


def test_one_long_prompt_does_not_widen_a_data_set() -> None:
    """4,000 rows padded to 4,000 tokens would take 390 MiB."""
    tokenizer = Letters()

    def demonstrations(rows: Any, tokenizer: Any) -> Any:
        return answered(PromptSet.of(rows, tokenizer), [("cd", True)] * len(rows), tokenizer)

    for make in (demonstrations, read_comparisons, PromptSet.of):
        size, found = held(tokenizer, make)
        assert size <= 2**20, make
        assert len(found) == 4000
    texts = demonstrations(long_and_short(3), tokenizer)
    assert texts.select(torch.tensor([1, 2])).tokens.shape == (2, 5)
    assert texts.select(torch.tensor([0, 2])).tokens.shape == (2, 4003)
    few = read_comparisons(long_and_short(3), tokenizer)
    assert few.select(torch.tensor([2])).texts.tokens.shape == (1, 7)


def test_each_prompt_is_tokenised_once() -> None:
    tokenizer = Letters()
    rows = [{"prompt": f"p{i}"} for i in range(5)]
    prompts = PromptSet.chosen(rows, tokenizer, "train", LeftOut(), longest=3, room=4)
    for _ in range(3):
        list(prompts.all().split(2))
    assert tokenizer.prompts == [row["prompt"] for row in rows]


def test_comparisons_select_as_packed_texts_did() -> None:
    tokenizer = Letters()
    rows = [
        {"prompt": "a", "completions": ["b", "cc", "d"], "ranks": [0, 2, 1], "scores": [3, 1, 2]},
        {"prompt": "long one", "completions": ["e", "ffff"], "ranks": [None, 0], "scores": [0, 1]},
        {"prompt": "z", "completions": ["y", "x"], "ranks": [1, 1], "scores": [5, 5]},
    ]
    data = read_comparisons(rows, tokenizer)
    whole = PackedTexts.of(
        [tokenizer.prompt(row) for row in rows],
        [[tokenizer.response(text) for text in row["completions"]] for row in rows],
        tokenizer.pad_id,
    )
    for index in ([2], [1, 0], [0, 1, 2]):
        chosen = torch.tensor(index)
        found, wanted = data.select(chosen), whole.select(chosen)
        for name in ("tokens", "mask", "segment", "positions"):
            assert torch.equal(getattr(found.texts, name), getattr(wanted, name)), name
        assert found.texts.completions == 3  # of the whole data
        assert torch.equal(found.texts.lengths(), data.completion_lengths()[chosen])
        assert found.texts.mask.sum(1).tolist() == data.lengths[chosen].tolist()
        ranked = data.ranked(chosen)
        assert torch.equal(ranked.ranks, found.ranks) and torch.equal(ranked.mask, found.mask)
    assert data.ranks.tolist() == [[0, 2, 1], [-1, 0, 0], [1, 1, 0]]
    assert data.gold is not None and data.gold[1].tolist() == [0, 1, 0]


def test_text_blocks_count_what_they_leave_out() -> None:
    left_out = LeftOut()
    rows = [{"text": "abcdefg"}, {"text": "hij"}]
    blocks = text_blocks(rows, Letters(), 5, left_out, "train")
    batch = blocks.select(torch.arange(2))
    assert batch.tokens.tolist() == [list(map(ord, "abcde")), [*map(ord, "fg"), 1, *map(ord, "hi")]]
    assert batch.target.tolist() == [[False] + [True] * 4] * 2
    assert left_out.summary() == {
        "left_out": {"tokens of text, split train: they fill no whole block": 2}
    }

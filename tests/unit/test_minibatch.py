"""Minibatches are disjoint and freshly ordered, groups stay whole; a cycle goes on."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from rlhf_kit.engine.minibatch import Cycle, minibatches
from rlhf_kit.ops.sequence import by_length


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_each_epoch_covers_every_row_once() -> None:
    found = list(minibatches(10, 4, 3, generator()))
    assert [len(rows) for rows in found] == [4, 4, 2] * 3
    epochs = [torch.cat(found[i : i + 3]).tolist() for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3  # fresh orders


def test_one_generator_one_order() -> None:
    once, again = (list(minibatches(10, 4, 2, generator(5))) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_without_groups_the_order_is_that_of_one_permutation() -> None:
    source = generator(5)
    wanted = [torch.randperm(10, generator=source).split(4) for _ in range(2)]
    found = list(minibatches(10, 4, 2, generator(5)))
    assert [rows.tolist() for rows in found] == [rows.tolist() for e in wanted for rows in e]


# Groups of 3, 2, 2 and 1 rows, their members apart and their numbers arbitrary.
GROUP = torch.tensor([7, -2, 7, 40, 3, -2, 3, 7])
MEMBERS = {frozenset({0, 2, 7}), frozenset({1, 5}), frozenset({4, 6}), frozenset({3})}


def whole(rows: torch.Tensor) -> bool:
    """Whether every group is inside ``rows`` or outside."""
    chosen = set(rows.tolist())
    return all(members <= chosen or not members & chosen for members in MEMBERS)


@pytest.mark.parametrize("size", [3, 4, 5, 8, 100])
def test_groups_travel_whole(size: int) -> None:
    for seed in range(10):
        found = list(minibatches(8, size, 1, generator(seed), GROUP))
        assert sorted(torch.cat(found).tolist()) == list(range(8))
        assert all(1 <= len(rows) <= size and whole(rows) for rows in found)
        for first, second in pairwise(found):  # no minibatch ends while the next group has room
            following = next(m for m in MEMBERS if int(second[0]) in m)
            assert len(first) + len(following) > size


def test_groups_of_one_size_fill_every_minibatch() -> None:
    """What PPO has: several responses to each prompt. Each epoch pairs the prompts anew."""
    group = torch.arange(6).repeat_interleave(2)
    found = list(minibatches(12, 4, 3, generator(), group))
    assert [len(rows) for rows in found] == [4] * 9
    pairs = [{frozenset(group[rows].tolist()) for rows in found[i : i + 3]} for i in (0, 3, 6)]
    assert all(set().union(*epoch) == set(range(6)) for epoch in pairs)
    assert pairs[0] != pairs[1] or pairs[1] != pairs[2]


def test_a_group_larger_than_a_minibatch_is_refused() -> None:
    with pytest.raises(ValueError, match="a group of 3 rows does not fit into a chunk of 2"):
        list(minibatches(8, 2, 1, generator(), GROUP))
    with pytest.raises(ValueError, match="a group of 3 rows does not fit into a chunk of 2"):
        by_length(torch.arange(8), 2, GROUP)


def test_by_length_puts_neighbours_in_length_together() -> None:
    lengths = torch.tensor([5, 1, 5, 2, 9, 1])
    assert [rows.tolist() for rows in by_length(lengths, 4)] == [[1, 5, 3, 0], [2, 4]]


def test_by_length_with_whole_groups() -> None:
    """Longest rows 6, 9, 2, 3 of the groups 7, -2, 40, 3: in chunks of 4 rows 40 + 3, 7, -2."""
    lengths = torch.tensor([6, 1, 1, 2, 3, 9, 3, 1])
    found = by_length(lengths, 4, GROUP)
    assert [rows.tolist() for rows in found] == [[3, 4, 6], [0, 2, 7], [1, 5]]
    assert [rows.tolist() for rows in by_length(lengths, 100, GROUP)] == [[3, 4, 6, 0, 2, 7, 1, 5]]


def test_a_cycle_passes_over_all_rows() -> None:
    cycle = Cycle(5, 2, generator())
    drawn = torch.cat([cycle.next() for _ in range(5)]).tolist()
    assert sorted(drawn[:5]) == sorted(drawn[5:]) == list(range(5))


def test_a_batch_may_be_larger_than_the_data() -> None:
    batch = Cycle(3, 7, generator()).next()
    assert len(batch) == 7
    assert torch.bincount(batch).min() >= 2


def test_a_cycle_goes_on_where_it_stopped() -> None:
    source = generator()
    cycle = Cycle(7, 3, source)
    cycle.next()
    state, place = cycle.state_dict(), source.get_state()
    wanted = [cycle.next().tolist() for _ in range(6)]
    resumed = generator(99)
    resumed.set_state(place)
    other = Cycle(7, 3, resumed)
    other.load_state_dict(state)
    assert [other.next().tolist() for _ in range(6)] == wanted


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        Cycle(0, 2, generator())

"""Minibatches are disjoint and freshly ordered; a cycle goes on where it stopped."""

from __future__ import annotations

import pytest
import torch

from rlhf_kit.engine.minibatch import Cycle, minibatches


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

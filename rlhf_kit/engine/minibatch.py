"""Disjoint minibatches in a fresh order for every inner epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from rlhf_kit.ops.sequence import members_of, whole_groups


def minibatches(
    rows: int, size: int, epochs: int, generator: torch.Generator, group: Tensor | None = None
) -> Iterator[Tensor]:
    """Yield index tensors: ``epochs`` fresh permutations of ``rows``, each cut into ``size``.

    Args:
        rows: how many there are.
        size: of a minibatch; the last one of an epoch may be smaller.
        epochs: how many times every row is seen.
        generator: the source of the orders.
        group: [rows] int64; with it whole groups travel together, in a fresh order of the groups,
            and a minibatch has at most ``size`` rows.

    Raises:
        ValueError: a group is larger than ``size``.
    """
    for _ in range(epochs):
        if group is None:
            yield from torch.randperm(rows, generator=generator).split(size)
        else:
            members = members_of(group)
            order = torch.randperm(len(members), generator=generator).tolist()
            yield from whole_groups([members[i] for i in order], size)


class Cycle:
    """Endless batches of indices, reshuffled on each pass; its place survives a resume.

    Args:
        rows: how many there are.
        size: of a batch.
        span_passes: fill the last batch of a pass from the next pass. Without it that batch is
            short, so that every row is seen exactly once in each pass: what "one epoch" means.
    """

    def __init__(
        self, rows: int, size: int, generator: torch.Generator, *, span_passes: bool = True
    ) -> None:
        if rows < 1:
            raise ValueError("Cycle: there are no rows to draw from")
        self._rows, self._size, self._generator = rows, size, generator
        self._least = size if span_passes else 1
        self._order = torch.zeros(0, dtype=torch.long)

    def next(self) -> Tensor:
        """At most ``size`` row indices; exactly so many when batches span passes."""
        wanting = self._least - len(self._order)
        passes = range(math.ceil(wanting / self._rows))  # none where enough is left
        fresh = [torch.randperm(self._rows, generator=self._generator) for _ in passes]
        self._order = torch.cat([self._order, *fresh])
        batch, self._order = self._order[: self._size], self._order[self._size :]
        return batch

    def state_dict(self) -> dict[str, Tensor]:
        return {"order": self._order}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._order = state["order"]

"""Disjoint minibatches in a fresh order for every inner epoch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def minibatches(rows: int, size: int, epochs: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield index tensors: ``epochs`` fresh permutations of ``rows``, each cut into ``size``."""
    for _ in range(epochs):
        yield from torch.randperm(rows, generator=generator).split(size)


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
        while len(self._order) < self._least:
            fresh = torch.randperm(self._rows, generator=self._generator)
            self._order = torch.cat([self._order, fresh])
        batch, self._order = self._order[: self._size], self._order[self._size :]
        return batch

    def state_dict(self) -> dict[str, Tensor]:
        return {"order": self._order}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._order = state["order"]

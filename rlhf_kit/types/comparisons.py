"""K-way comparisons as a batch: all completions of a prompt travel together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_kit.types.texts import TextBatch


@dataclass(frozen=True, eq=False)
class ComparisonBatch:
    """G prompts with up to K completions each; row ``index[g, k]`` of ``texts`` is completion k.

    One element holds every completion of its prompt, so that a completion is encoded once however
    many pairs it takes part in (InstructGPT, arXiv:2203.02155, section 3.5).
    """

    texts: TextBatch  # N rows
    index: Tensor  # [G, K] int64, 0 where mask is False
    ranks: Tensor  # [G, K] int64, 0 = best, equal = tied
    mask: Tensor  # [G, K] bool
    gold: Tensor | None = None  # [G, K] float32: the labeler's own scores, where it has them

    def __len__(self) -> int:
        return self.index.shape[0]

    def grouped(self, scores: Tensor) -> Tensor:
        """[N] scores of the texts as [G, K]; places without a completion hold zero."""
        return torch.where(self.mask, scores.to(self.index.device)[self.index], 0.0)

    def select(self, prompts: Tensor) -> ComparisonBatch:
        """Prompts ``prompts`` with only their own texts."""
        mask, index = self.mask[prompts], self.index[prompts]
        rows = index[mask]
        local = torch.zeros_like(index)
        local[mask] = torch.arange(len(rows))
        gold = None if self.gold is None else self.gold[prompts]
        return ComparisonBatch(self.texts.select(rows), local, self.ranks[prompts], mask, gold)

    def split(self, size: int) -> Iterator[ComparisonBatch]:
        """Micro-batches of at most ``size`` prompts."""
        for prompts in torch.arange(len(self)).split(size):
            yield self.select(prompts)

"""K-way comparisons as a batch: all completions of a prompt travel together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_kit.types.packed import PackedTexts


@dataclass(frozen=True, eq=False)
class ComparisonBatch:
    """G prompts with up to K completions each.

    One element holds every completion of its prompt, so that a completion is encoded once however
    many pairs it takes part in (InstructGPT, arXiv:2203.02155, section 3.5).
    """

    texts: PackedTexts  # G prompts
    ranks: Tensor  # [G, K] int64, 0 = best, equal = tied, negative = not ranked
    mask: Tensor  # [G, K] bool: which completions exist
    gold: Tensor | None = None  # [G, K] float32: the labeler's own scores, where it has them

    def __len__(self) -> int:
        return self.ranks.shape[0]

    def select(self, prompts: Tensor) -> ComparisonBatch:
        """Prompts ``prompts``, with texts cut to the longest of them; K stays."""
        gold = None if self.gold is None else self.gold[prompts]
        texts = self.texts.select(prompts)
        return ComparisonBatch(texts, self.ranks[prompts], self.mask[prompts], gold)

    def split(self, size: int) -> Iterator[ComparisonBatch]:
        """Micro-batches of at most ``size`` prompts."""
        for prompts in torch.arange(len(self)).split(size):
            yield self.select(prompts)

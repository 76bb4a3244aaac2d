"""K-way comparisons: all completions of a prompt travel together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlhf_kit.types.activations import Activations
from rlhf_kit.types.losses import Ranked
from rlhf_kit.types.packed import PackedTexts
from rlhf_kit.types.ragged import Ragged


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

    @property
    def ranked(self) -> Ranked:
        """What a loss counts."""
        return Ranked(self.ranks, self.mask)

    def select(self, prompts: Tensor) -> ComparisonBatch:
        """Prompts ``prompts``, with texts cut to the longest of them; K stays."""
        gold = None if self.gold is None else self.gold[prompts]
        texts = self.texts.select(prompts)
        return ComparisonBatch(texts, self.ranks[prompts], self.mask[prompts], gold)

    def split(self, size: int) -> Iterator[ComparisonBatch]:
        """Micro-batches of at most ``size`` prompts."""
        for prompts in torch.arange(len(self)).split(size):
            yield self.select(prompts)


@dataclass(frozen=True, eq=False)
class Comparisons:
    """The comparisons of a data set, without padding; a batch is made when it is needed."""

    prompts: Ragged  # G
    completions: Ragged  # those of prompt 0, of prompt 1, ...
    ranks: Tensor  # [G, K] int64, 0 = best, equal = tied, negative = not ranked
    mask: Tensor  # [G, K] bool: which completions exist
    gold: Tensor | None  # [G, K] float32: the labeler's own scores, where it has them
    pad: int
    trunk: Activations | None = None  # of each packed prompt, computed once

    def __len__(self) -> int:
        return self.ranks.shape[0]

    def completion_lengths(self) -> Tensor:
        """[G, K] int64: the tokens of each completion; 0 where there is none."""
        found = torch.zeros(self.mask.shape, dtype=torch.long)
        return found.masked_scatter(self.mask, self.completions.lengths)

    @property
    def lengths(self) -> Tensor:
        """[G] int64: the tokens of each prompt and its completions."""
        return self.prompts.lengths + self.completion_lengths().sum(1)

    def ranked(self, prompts: Tensor) -> Ranked:
        """What a loss counts of ``prompts``."""
        return Ranked(self.ranks[prompts], self.mask[prompts])

    def select(self, prompts: Tensor) -> ComparisonBatch:
        """Prompts ``prompts``, padded to the longest of them; K stays that of the whole data."""
        counts = self.mask.sum(1)
        first = counts.cumsum(0) - counts
        index = prompts.tolist()
        texts = PackedTexts.of(
            [self.prompts[g] for g in index],
            [[self.completions[int(first[g]) + k] for k in range(int(counts[g]))] for g in index],
            self.pad,
            self.mask.shape[1],
        )
        if self.trunk is not None:
            texts = replace(texts, trunk=self.trunk.select(index).padded(texts.mask))
        gold = None if self.gold is None else self.gold[prompts]
        return ComparisonBatch(texts, self.ranks[prompts], self.mask[prompts], gold)

"""Whole texts, for SFT, reward models and the pretraining mix: a batch, and what it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlhf_kit.types.activations import PaddedTrunk
from rlhf_kit.types.losses import Masked
from rlhf_kit.types.ragged import Ragged
from rlhf_kit.types.shapes import width_of


@dataclass(frozen=True, eq=False)
class TextBatch:
    """B texts of up to T tokens.

    ``target`` marks the tokens that count (the response in SFT and in reward models, every token
    but the first in pretraining text). ``trunk`` may hold the activations of a frozen trunk, which
    spare a shared backbone from computing them again.
    """

    tokens: Tensor  # [B, T] int64
    mask: Tensor  # [B, T] bool
    target: Tensor  # [B, T] bool
    trunk: PaddedTrunk | None = None  # of the tokens

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def predicted(self) -> Tensor:
        """[B, T-1]: which next-token predictions count, aligned with next_token_logprobs."""
        return self.target[:, 1:] & self.mask[:, 1:]

    @property
    def targets(self) -> Masked:
        """What a loss over these texts counts."""
        return Masked(self.predicted)

    def select(self, index: Tensor) -> TextBatch:
        """Rows ``index``, cut to the longest of them."""
        mask = self.mask[index]
        width = width_of(mask)
        return replace(
            self,
            tokens=self.tokens[index, :width],
            mask=mask[:, :width],
            target=self.target[index, :width],
            trunk=None if self.trunk is None else self.trunk[index, :width],
        )

    def split(self, size: int) -> Iterator[TextBatch]:
        """Micro-batches of at most ``size`` rows."""
        for rows in torch.arange(len(self)).split(size):
            yield self.select(rows)


@dataclass(frozen=True, eq=False)
class Texts:
    """N texts without padding; a batch of them is made when it is needed."""

    tokens: Ragged
    begins: Tensor  # [N] int64: how many tokens come before those that count
    pad: int

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> Tensor:
        """[N] int64, in tokens."""
        return self.tokens.lengths

    def first(self, count: int) -> Texts:
        """The first ``count`` of them."""
        index = torch.arange(min(count, len(self)))
        return Texts(self.tokens.select(index), self.begins[index], self.pad)

    def select(self, index: Tensor) -> TextBatch:
        """Texts ``index``, padded to the longest of them.

        The target is laid by position, never by comparing with the pad id: where pad and
        end-of-sequence are one token, the end must survive in the labels.
        """
        tokens, mask = self.tokens.select(index).padded(self.pad)
        columns = torch.arange(tokens.shape[1])
        return TextBatch(tokens, mask, mask & (columns >= self.begins[index][:, None]))

    def split(self, size: int) -> Iterator[TextBatch]:
        """Micro-batches of at most ``size`` texts."""
        for rows in torch.arange(len(self)).split(size):
            yield self.select(rows)

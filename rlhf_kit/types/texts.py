"""A batch of whole texts, right-padded: for SFT, reward models and the pretraining mix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor


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
    trunk: Tensor | None = None  # [B, T, H]

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def predicted(self) -> Tensor:
        """[B, T-1]: which next-token predictions count, aligned with next_token_logprobs."""
        return self.target[:, 1:] & self.mask[:, 1:]

    def select(self, index: Tensor) -> TextBatch:
        """Rows ``index``, cut to the longest of them."""
        mask = self.mask[index]
        width = int(mask.sum(1).max()) if len(index) else 0
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

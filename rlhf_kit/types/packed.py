"""A prompt and all its completions in one row, so that the prompt is encoded once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlhf_kit.types.activations import PaddedTrunk
from rlhf_kit.types.shapes import width_of
from rlhf_kit.types.texts import TextBatch

Tokens = Sequence[int]


@dataclass(frozen=True, eq=False)
class PackedTexts:
    """G prompts, each followed in its row by up to K completions.

    A completion sees the prompt and itself, and its positions go on from the prompt, so that it
    reads as if it stood alone behind its prompt. What a model computes is then one forward over
    P + R_1 + ... + R_K tokens instead of K forwards over P + R_k (InstructGPT trains on all
    completions of a prompt as one element, arXiv:2203.02155, section 3.5).
    """

    tokens: Tensor  # [G, T] int64, right-padded
    mask: Tensor  # [G, T] bool
    segment: Tensor  # [G, T] int64: 0 = prompt, k = completion k, counted from 1
    positions: Tensor  # [G, T] int64: the place of a token in its own text
    completions: int  # K, the most that a prompt of the whole data has; a selection keeps it
    trunk: PaddedTrunk | None = None  # of the tokens, as packed

    @classmethod
    def of(
        cls,
        prompts: Sequence[Tokens],
        completions: Sequence[Sequence[Tokens]],
        pad: int,
        most: int | None = None,
    ) -> PackedTexts:
        """Pack token lists: ``completions[g]`` are those of ``prompts[g]``.

        ``most`` is K; None: the most that one of these prompts has.
        """
        rows = [[p, *own] for p, own in zip(prompts, completions, strict=True)]
        width = max((sum(map(len, row)) for row in rows), default=0)
        shape = (len(rows), width)
        tokens = torch.full(shape, pad, dtype=torch.long)
        segment, positions = torch.zeros((2, *shape), dtype=torch.long)
        mask = torch.zeros(shape, dtype=torch.bool)
        for g, row in enumerate(rows):
            end = 0
            for k, part in enumerate(row):
                first = len(row[0]) if k else 0
                begin, end = end, end + len(part)
                tokens[g, begin:end] = torch.tensor(part, dtype=torch.long)
                segment[g, begin:end] = k
                positions[g, begin:end] = torch.arange(first, first + len(part))
            mask[g, :end] = True
        if most is None:
            most = max(map(len, completions), default=0)
        return cls(tokens, mask, segment, positions, most)

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def to(self, device: torch.device) -> PackedTexts:
        return replace(
            self,
            tokens=self.tokens.to(device),
            mask=self.mask.to(device),
            segment=self.segment.to(device),
            positions=self.positions.to(device),
            trunk=None if self.trunk is None else self.trunk.to(device),
        )

    def places(self) -> Tensor:
        """[G, K, T] bool: the tokens of each completion."""
        numbers = torch.arange(1, self.completions + 1, device=self.segment.device)
        return (self.segment[:, None] == numbers[:, None]) & self.mask[:, None]

    def lengths(self) -> Tensor:
        """[G, K] int64: the tokens of each completion; 0 where there is none."""
        return self.places().sum(2)

    def visible(self) -> Tensor:
        """[G, T, T] bool: ``[g, i, j]``, token i sees token j.

        Itself and what comes before it in the prompt and in its own completion. Padding sees
        itself too, since a softmax over nothing is NaN; nothing else sees padding.
        """
        same = self.segment[:, :, None] == self.segment[:, None, :]
        prompt = (self.segment == 0)[:, None, :]
        seen = ((same | prompt) & self.mask[:, None, :]).tril()
        return seen | torch.eye(seen.shape[1], dtype=torch.bool, device=seen.device)

    def select(self, prompts: Tensor) -> PackedTexts:
        """Rows ``prompts``, cut to the longest of them."""
        mask = self.mask[prompts]
        width = width_of(mask)
        return replace(
            self,
            tokens=self.tokens[prompts, :width],
            mask=mask[:, :width],
            segment=self.segment[prompts, :width],
            positions=self.positions[prompts, :width],
            trunk=None if self.trunk is None else self.trunk[prompts, :width],
        )

    def split(self, size: int) -> Iterator[PackedTexts]:
        """Micro-batches of at most ``size`` prompts."""
        for prompts in torch.arange(len(self)).split(size):
            yield self.select(prompts)

    def unpacked(self) -> tuple[TextBatch, Tensor]:
        """One text per completion, the prompt repeated, and which completions exist.

        Returns:
            N texts, prompt by prompt, and exists [G, K] bool with N True: ``x[exists] = rows``
            lays what was computed per text back to its prompt and completion.
        """
        exists = self.lengths() > 0
        prompt, columns, mask = self._columns(exists)
        target = mask & (self.segment[prompt, columns] > 0)
        trunk = None if self.trunk is None else self.trunk[prompt, columns]
        return TextBatch(self.tokens[prompt, columns], mask, target, trunk), exists

    def per_text(self, x: Tensor) -> Tensor:
        """``x`` [G, T, ...] of the tokens, laid out as the texts of ``unpacked``: [N, T', ...]."""
        prompt, columns, _ = self._columns(self.lengths() > 0)
        return x[prompt, columns]

    def with_trunk(self, rows: PaddedTrunk) -> PackedTexts:
        """With the activations of the N texts of ``unpacked``.

        Of the prompt, which every text repeats, those of the first text are kept.
        """
        exists = self.lengths() > 0
        prompt, columns, mask = self._columns(exists)
        first = torch.ones_like(prompt, dtype=torch.bool)
        first[1:] = prompt[1:] != prompt[:-1]
        kept = mask & (first | (self.segment[prompt, columns] > 0))
        states = rows.states.new_zeros((*self.tokens.shape, rows.states.shape[-1]))
        states[prompt.expand_as(columns)[kept], columns[kept]] = rows.states[kept]
        return replace(self, trunk=replace(rows, states=states))

    def _columns(self, exists: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where the tokens of the N texts stand: row [N, 1], column [N, T'], and which are valid"""
        own = self.places() | ((self.segment == 0) & self.mask)[:, None]
        own = own[exists]  # [N, T]
        count = own.sum(1)
        width = int(count.max()) if len(own) else 0
        columns = (~own).long().argsort(dim=1, stable=True)[:, :width]
        mask = torch.arange(width, device=own.device) < count[:, None]
        return exists.nonzero()[:, :1], columns, mask

"""Prompts and what a policy answered to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from rlhf_kit.rows import Row
from rlhf_kit.types.activations import Activations, PaddedTrunk, TrunkId
from rlhf_kit.types.shapes import joined, width_of


def asked(row: Row) -> str:
    """What a row asks, for a person to read: its prompt, its last message, or its token ids."""
    if "token_ids" in row:
        return " ".join(map(str, row["token_ids"]))
    return str(row.get("prompt") or row["messages"][-1]["content"])


@dataclass(frozen=True, eq=False)
class Prompts:
    """B prompts, left-padded so that every response starts in the same column."""

    tokens: Tensor  # [B, P] int64
    mask: Tensor  # [B, P] bool
    rows: Sequence[Row]  # the source rows, so that a reward can read a reference answer
    group: Tensor  # [B] int64: rows of one group answer the same prompt
    stream: Tensor  # [B] int64: names the row's own stream of draws; rows of one draw alike

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def to(self, device: torch.device) -> Prompts:
        return replace(
            self,
            tokens=self.tokens.to(device),
            mask=self.mask.to(device),
            group=self.group.to(device),
            stream=self.stream.to(device),
        )

    def select(self, index: Tensor) -> Prompts:
        """Rows ``index``, cut on the left to the longest of them."""
        mask = self.mask[index]
        first = mask.shape[1] - width_of(mask.flip(1))
        return Prompts(
            self.tokens[index, first:],
            mask[:, first:],
            [self.rows[i] for i in index.tolist()],
            self.group[index],
            self.stream[index],
        )

    def repeat(self, times: int) -> Prompts:
        """Each prompt ``times`` times in a row; ``group`` keeps them together.

        Repetition k of a row draws from stream ``stream * times + k``.
        """
        each = torch.arange(times, device=self.stream.device)
        return Prompts(
            self.tokens.repeat_interleave(times, 0),
            self.mask.repeat_interleave(times, 0),
            [row for row in self.rows for _ in range(times)],
            self.group.repeat_interleave(times, 0),
            (self.stream[:, None] * times + each).flatten(),
        )

    def split(self, size: int) -> Iterator[Prompts]:
        """Chunks of at most ``size`` rows; only a group that is larger itself is cut."""
        for index in _whole_groups(self.group, size):
            yield self.select(index)


def _whole_groups(group: Tensor, size: int) -> Sequence[Tensor]:
    """Rows in chunks of at most ``size``, in their order; a group stays whole if it fits in one.

    Args:
        group: [B] int64, neighbours that belong together being equal.
    """
    lengths = torch.unique_consecutive(group, return_counts=True)[1]
    chunks: list[Tensor] = []
    for rows in torch.arange(len(group)).split(lengths.tolist()):
        if chunks and len(chunks[-1]) + len(rows) <= size:
            chunks[-1] = torch.cat([chunks[-1], rows])
        else:
            chunks.extend(rows.split(size))
    return chunks


@dataclass(frozen=True)
class Sampling:
    """How to sample: plain ancestral sampling at a temperature.

    There is no top-k or top-p: PPO must score exactly the distribution it sampled from. Token t of
    a row is drawn with ``rlhf_kit.ops.draws.uniforms(key, prompts.stream, ...)[row, t]``.
    """

    max_new_tokens: int
    temperature: float
    key: int  # 63 bits that name stage and step


@dataclass(frozen=True, eq=False)
class Samples:
    """B sampled responses. ``response_mask`` includes the end-of-sequence token, nothing after."""

    prompts: Prompts
    response_tokens: Tensor  # [B, R] int64
    response_mask: Tensor  # [B, R] bool
    finished: Tensor  # [B] bool: ended with an end-of-sequence token
    temperature: float
    decode: Callable[[list[int]], str] = field(repr=False)
    trunk: Activations | None = None  # of the tokens, at the frozen/trainable boundary
    # [B, R] of the tokens when they were drawn; garbage in the padding
    sampled_logprobs: Tensor | None = None

    def __len__(self) -> int:
        return self.response_tokens.shape[0]

    @property
    def rows(self) -> Sequence[Row]:
        return self.prompts.rows

    @property
    def group(self) -> Tensor:
        return self.prompts.group

    @property
    def mask(self) -> Tensor:
        """[B, R], the mask that losses count."""
        return self.response_mask

    @cached_property
    def tokens(self) -> Tensor:
        """[B, T]"""
        return torch.cat([self.prompts.tokens, self.response_tokens], 1)

    @cached_property
    def token_mask(self) -> Tensor:
        """[B, T]"""
        return torch.cat([self.prompts.mask, self.response_mask], 1)

    @cached_property
    def responses(self) -> list[str]:
        """The B responses as text, without special tokens; decoded on first use."""
        return [
            self.decode(tokens[mask].tolist())
            for tokens, mask in zip(self.response_tokens, self.response_mask, strict=True)
        ]

    def with_trunk(self, trunk: PaddedTrunk) -> Samples:
        """With the activations ``trunk``, aligned with ``tokens``, kept without padding."""
        return replace(self, trunk=Activations.of(trunk, self.token_mask))

    def without_trunk(self) -> Samples:
        return replace(self, trunk=None)

    def trunk_on(self, device: torch.device) -> Samples:
        """With the trunk, if there is one, moved to ``device``."""
        return self if self.trunk is None else replace(self, trunk=self.trunk.to(device))

    def padded_trunk(self) -> PaddedTrunk | None:
        """Aligned with ``tokens``, made anew by every call: nobody keeps the padding."""
        return None if self.trunk is None else self.trunk.padded(self.token_mask)

    def read_by(self, origin: TrunkId | None) -> Samples:
        """For who reads activations of ``origin``, None: of nothing; a foreign trunk is left out.

        A role refuses a trunk that is not its own. What scores another model's samples says so
        here, and the role computes its own from the tokens.
        """
        own = self.trunk is None or self.trunk.origin == origin
        return self if own else replace(self, trunk=None)

    def select(self, index: Tensor, columns: int = 0) -> Samples:
        """Rows ``index``, cut on both sides to the longest of them.

        Args:
            index: [B] int64.
            columns: of the responses, at least so many are kept.
        """
        mask = self.response_mask[index]
        width = max(columns, width_of(mask))
        drawn = self.sampled_logprobs
        return replace(
            self,
            prompts=self.prompts.select(index),
            response_tokens=self.response_tokens[index, :width],
            response_mask=mask[:, :width],
            finished=self.finished[index],
            trunk=None if self.trunk is None else self.trunk.select(index.tolist()),
            sampled_logprobs=None if drawn is None else drawn[index, :width],
        )

    def with_room(self, width: int) -> Samples:
        """With responses ``width`` columns wide at least; what is added is padding."""
        more = max(width - self.response_tokens.shape[1], 0)

        def wide(x: Tensor) -> Tensor:
            return torch.cat([x, x.new_zeros((x.shape[0], more, *x.shape[2:]))], 1)

        drawn = self.sampled_logprobs
        return replace(
            self,
            response_tokens=wide(self.response_tokens),
            response_mask=wide(self.response_mask),
            sampled_logprobs=None if drawn is None else wide(drawn),
        )

    @classmethod
    def join(cls, parts: Sequence[Samples]) -> Samples:
        """One batch of several, each padded to the widest of them."""
        if len(parts) == 1:
            return parts[0]
        begins, first = [part.prompts for part in parts], parts[0]
        prompts = Prompts(
            joined([p.tokens for p in begins], left=True),
            joined([p.mask for p in begins], left=True),
            [row for p in begins for row in p.rows],
            torch.cat([p.group for p in begins]),
            torch.cat([p.stream for p in begins]),
        )
        trunks = [part.trunk for part in parts if part.trunk is not None]
        drawn = [p.sampled_logprobs for p in parts if p.sampled_logprobs is not None]
        return replace(
            first,
            prompts=prompts,
            response_tokens=joined([part.response_tokens for part in parts]),
            response_mask=joined([part.response_mask for part in parts]),
            finished=torch.cat([part.finished for part in parts]),
            trunk=Activations.join(trunks) if trunks else None,
            sampled_logprobs=joined(drawn) if drawn else None,
        )

    def split(self, size: int) -> Iterator[Samples]:
        """Chunks of at most ``size`` rows."""
        for rows in torch.arange(len(self)).split(size):
            yield self.select(rows)

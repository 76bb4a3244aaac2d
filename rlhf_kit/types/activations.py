"""Activations of a frozen trunk, which say what they were computed with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class TrunkId:
    """What activations depend on besides the tokens: alike in all three, they may be shared."""

    backbone: str  # the frozen weights, for people and as a hash
    depth: int  # how many layers lie below
    dtype: str  # the precision of weights and arithmetic, such as "bfloat16"

    def __str__(self) -> str:
        return f"{self.backbone}, {self.depth} layers deep, {self.dtype}"


@dataclass(frozen=True, eq=False)
class PaddedTrunk:
    """The activations of a batch, aligned with its tokens; what stands in the padding is anything.

    They are made for one forward pass; ``Activations`` keeps them.
    """

    states: Tensor  # [B, T, H]
    origin: TrunkId

    def __getitem__(self, index: Any) -> PaddedTrunk:
        """Those at ``index``, as of a tensor."""
        return replace(self, states=self.states[index])

    def to(self, device: torch.device) -> PaddedTrunk:
        return replace(self, states=self.states.to(device))


@dataclass(frozen=True, eq=False)
class Activations:
    """The activations of B rows, each [T_i, H]: those of the row's valid tokens, in their order.

    They outlive a forward pass, where everything else of its size does not. Padded, one long
    prompt would make every row of a rollout as long as itself.
    """

    rows: tuple[Tensor, ...]  # views of a few larger tensors; a selection copies nothing
    origin: TrunkId

    @classmethod
    def of(cls, trunk: PaddedTrunk, mask: Tensor) -> Activations:
        """Keep of ``trunk`` what ``mask`` [B, T] calls valid."""
        return cls(trunk.states[mask].split(mask.sum(1).tolist()), trunk.origin)

    @classmethod
    def of_columns(
        cls, pieces: list[Tensor], mask: Tensor, rows: Sequence[Tensor], origin: TrunkId
    ) -> Activations:
        """The same of neighbouring columns, as decoding yields them.

        Args:
            pieces: [B_p, T_p, H] each, together T columns wide. Emptied on the way, so that pieces
                and result are never both whole in memory.
            mask: [B, T] bool.
            rows: [B_p] int64 for each piece, which rows it is of; all that are valid there.
            origin: of the pieces.
        """
        lengths = mask.sum(1)
        places = (lengths.cumsum(0) - lengths)[:, None] + mask.cumsum(1) - 1  # [B, T]
        flat = pieces[0].new_empty((int(lengths.sum()), pieces[0].shape[2]))
        begin = 0
        pieces.reverse()
        for some in rows:
            piece = pieces.pop()
            columns = slice(begin, begin + piece.shape[1])
            valid = mask[some, columns]
            flat[places[some, columns][valid]] = piece[valid]
            begin = columns.stop
        return cls(flat.split(lengths.tolist()), origin)

    @classmethod
    def join(cls, parts: Iterable[Activations]) -> Activations:
        """The rows of several, one after the other.

        Raises:
            ValueError: they are not of one origin.
        """
        parts = list(parts)
        origins = {part.origin: None for part in parts}
        if len(origins) != 1:
            raise ValueError(
                f"trunk: activations of {len(origins)} origins cannot be joined: "
                f"{'; '.join(map(str, origins))}"
            )
        return cls(tuple(row for part in parts for row in part.rows), parts[0].origin)

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, index: Sequence[int]) -> Activations:
        return replace(self, rows=tuple(self.rows[i] for i in index))

    def padded(self, mask: Tensor) -> PaddedTrunk:
        """Fresh tensors: row i laid where ``mask`` [B, T] is True, zero elsewhere.

        Raises:
            ValueError: a row has not as many activations as its mask has places.
        """
        counts = mask.sum(1).tolist()
        if counts != [len(row) for row in self.rows]:
            raise ValueError(
                f"trunk: rows of {[len(row) for row in self.rows]} activations for masks of "
                f"{counts} tokens; it belongs to other tokens"
            )
        # Where the mask is: rows may be kept on the host.
        shape = (*mask.shape, self.rows[0].shape[1])
        found = self.rows[0].new_zeros(shape, device=mask.device)
        for i, row in enumerate(self.rows):
            found[i, mask[i]] = row.to(found.device)
        return PaddedTrunk(found, self.origin)

    def to(self, device: torch.device) -> Activations:
        return replace(self, rows=tuple(row.to(device) for row in self.rows))

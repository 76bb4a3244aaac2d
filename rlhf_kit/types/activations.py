"""Activations of a frozen trunk, kept without padding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Activations:
    """The activations of B rows, each [T_i, H]: those of the row's valid tokens, in their order.

    They outlive a forward pass, where everything else of its size does not. Padded, one long
    prompt would make every row of a rollout as long as itself.
    """

    rows: tuple[Tensor, ...]  # views of a few larger tensors; a selection copies nothing

    @classmethod
    def of(cls, activations: Tensor, mask: Tensor) -> Activations:
        """Keep of ``activations`` [B, T, H] what ``mask`` [B, T] calls valid."""
        return cls(activations[mask].split(mask.sum(1).tolist()))

    @classmethod
    def of_columns(cls, pieces: list[Tensor], mask: Tensor, rows: Sequence[Tensor]) -> Activations:
        """The same of neighbouring columns, as decoding yields them.

        Args:
            pieces: [B_p, T_p, H] each, together T columns wide. Emptied on the way, so that pieces
                and result are never both whole in memory.
            mask: [B, T] bool.
            rows: [B_p] int64 for each piece, which rows it is of; all that are valid there.
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
        return cls(flat.split(lengths.tolist()))

    @classmethod
    def join(cls, parts: Iterable[Activations]) -> Activations:
        """The rows of several, one after the other."""
        return cls(tuple(row for part in parts for row in part.rows))

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, index: Sequence[int]) -> Activations:
        return Activations(tuple(self.rows[i] for i in index))

    def padded(self, mask: Tensor) -> Tensor:
        """[B, T, H], a fresh tensor: row i laid where ``mask`` [B, T] is True, zero elsewhere.

        Raises:
            ValueError: a row has not as many activations as its mask has places.
        """
        counts = mask.sum(1).tolist()
        if counts != [len(row) for row in self.rows]:
            raise ValueError(
                f"trunk: rows of {[len(row) for row in self.rows]} activations for masks of "
                f"{counts} tokens; it belongs to other tokens"
            )
        found = self.rows[0].new_zeros((*mask.shape, self.rows[0].shape[1]))
        for i, row in enumerate(self.rows):
            found[i, mask[i]] = row.to(found.device)
        return found

    def to(self, device: torch.device) -> Activations:
        return Activations(tuple(row.to(device) for row in self.rows))

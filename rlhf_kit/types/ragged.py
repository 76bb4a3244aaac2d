"""Token lists of any lengths, end to end in one tensor: no padding is kept."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Ragged:
    """N token lists, four bytes a token. A batch of them is padded when it is asked for."""

    flat: Tensor  # [S] int32, all tokens of all lists
    begins: Tensor  # [N] int64, where each list begins in ``flat``
    lengths: Tensor  # [N] int64

    @classmethod
    def of(cls, lists: Iterable[Sequence[int]]) -> Ragged:
        """Keep ``lists``, which may be generated: they are never all in memory as lists."""
        flat, lengths = array("i"), array("q")
        for tokens in lists:
            flat.extend(tokens)
            lengths.append(len(tokens))
        sizes = _tensor(lengths, torch.int64)
        return cls(_tensor(flat, torch.int32), sizes.cumsum(0) - sizes, sizes)

    @classmethod
    def join(cls, parts: Sequence[Ragged]) -> Ragged:
        """The lists of several, one after the other."""
        sizes = torch.tensor([len(part.flat) for part in parts])
        moved = [p.begins + int(m) for p, m in zip(parts, sizes.cumsum(0) - sizes, strict=True)]
        return cls(
            torch.cat([part.flat for part in parts]),
            torch.cat(moved),
            torch.cat([part.lengths for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> list[int]:
        begin = int(self.begins[i])
        tokens: list[int] = self.flat[begin : begin + int(self.lengths[i])].tolist()
        return tokens

    def select(self, index: Tensor) -> Ragged:
        """The lists ``index``, over the same tokens: nothing is copied."""
        return Ragged(self.flat, self.begins[index], self.lengths[index])

    def padded(self, value: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
        """All lists at one width: tokens [N, T] int64 and mask [N, T] bool."""
        width = int(self.lengths.max()) if len(self) else 0
        columns = torch.arange(width)[None]
        if left:
            columns = columns - (width - self.lengths[:, None])
        mask = (columns >= 0) & (columns < self.lengths[:, None])
        tokens = torch.full(mask.shape, value, dtype=torch.long)
        tokens[mask] = self.flat[(self.begins[:, None] + columns)[mask]].long()
        return tokens, mask


def _tensor(values: array[int], dtype: torch.dtype) -> Tensor:
    # frombuffer refuses an empty buffer.
    return torch.frombuffer(values, dtype=dtype) if values else torch.zeros(0, dtype=dtype)

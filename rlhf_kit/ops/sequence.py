"""Where sequences begin, end and sit: positions, stops, padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def position_ids(mask: Tensor) -> Tensor:
    """[B, T] bool -> [B, T] int64: the index of each valid token among the valid ones of its row.

    Left padding would otherwise shift the positions of the prompt, which rotary embeddings hide
    and learned ones do not.
    """
    return (mask.cumsum(1) - 1).clamp(min=0)


def is_any(tokens: Tensor, ids: Sequence[int]) -> Tensor:
    """Tokens of any shape -> bool of that shape: True where a token is one of ``ids``."""
    found = tokens == ids[0]
    for token in ids[1:]:
        found = found | (tokens == token)
    return found


def response_mask(tokens: Tensor, stops: Sequence[int]) -> Tensor:
    """[B, R] tokens -> [B, R] bool: True up to and including the first of ``stops`` in a row."""
    ended = is_any(tokens, stops)
    return (ended.cumsum(1) - ended.long()) == 0


def with_place_after_end(mask: Tensor) -> Tensor:
    """[B, R] bool -> the same, plus the place after the last valid one where the row has room."""
    after = torch.zeros_like(mask)
    after[:, 1:] = mask[:, :-1]
    return mask | after


def last_index(mask: Tensor) -> Tensor:
    """[B, T] bool -> [B] int64: the column of the last valid token; 0 for an empty row."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, columns, 0).amax(1)


def members_of(group: Tensor) -> Sequence[Tensor]:
    """[B] int64 -> the rows of each group, both in ascending order."""
    _, sizes = group.unique(return_counts=True)
    return group.argsort(stable=True).split(sizes.tolist())


def whole_groups(groups: Sequence[Tensor], size: int) -> Sequence[Tensor]:
    """Rows in chunks of at most ``size``, filled with ``groups`` of rows in their order.

    Raises:
        ValueError: a group is larger than ``size``.
    """
    chunks: list[list[Tensor]] = []
    room = 0
    for rows in groups:
        if len(rows) > size:
            raise ValueError(f"a group of {len(rows)} rows does not fit into a chunk of {size}")
        if len(rows) > room:
            chunks.append([])
            room = size
        chunks[-1].append(rows)
        room -= len(rows)
    return [torch.cat(chunk) for chunk in chunks]


def by_length(lengths: Tensor, size: int, group: Tensor | None = None) -> Sequence[Tensor]:
    """Rows of ``lengths`` [B] in chunks of at most ``size``, neighbours in length together.

    A chunk is as wide as its longest row, so sorted rows carry the least padding. With ``group``
    [B] int64 whole groups travel together, sorted by their longest rows.

    Raises:
        ValueError: a group is larger than ``size``.
    """
    if group is None:
        return lengths.argsort(stable=True).split(size)
    members = sorted(members_of(group), key=lambda rows: int(lengths[rows].max()))
    return whole_groups(members, size)


def pad(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Pad token lists to one width. Returns tokens [B, T] int64 and mask [B, T] bool."""
    width = max((len(row) for row in rows), default=0)
    tokens = torch.full((len(rows), width), value, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        span = slice(width - len(row), width) if left else slice(0, len(row))
        tokens[i, span] = torch.tensor(row, dtype=torch.long)
        mask[i, span] = True
    return tokens, mask

"""One check for tensor shapes, used on public entry points."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check_shape(tensor: Tensor, legend: str, name: str, **sizes: int) -> dict[str, int]:
    """Check ``tensor`` against a legend such as "B R" and return the sizes it binds.

    Args:
        tensor: any tensor.
        legend: dimension names separated by spaces; "" for a scalar.
        name: what to call the tensor in the error.
        sizes: sizes already bound by other tensors, for example ``B=4``.

    Raises:
        ValueError: wrong rank, or a dimension that differs from an already bound size.
    """
    names = legend.split()
    if tensor.dim() != len(names):
        raise ValueError(f"{name}: expected [{', '.join(names)}], got shape {list(tensor.shape)}")
    bound = dict(sizes)
    for dim, size in zip(names, tensor.shape, strict=True):
        if bound.setdefault(dim, size) != size:
            raise ValueError(
                f"{name}: expected [{', '.join(names)}] with {dim}={bound[dim]}, "
                f"got shape {list(tensor.shape)}"
            )
    return bound


def width_of(mask: Tensor) -> int:
    """How many columns of ``mask`` [B, T] bool it takes to hold every True; 0 without one."""
    used = mask.any(0).nonzero()
    return int(used[-1]) + 1 if len(used) else 0


def joined(parts: Sequence[Tensor], *, left: bool = False) -> Tensor:
    """Stack [B_i, T_i, ...] along rows, padding dimension 1 with zeros to the widest."""
    width = max(part.shape[1] for part in parts)
    wide = []
    for part in parts:
        empty = part.new_zeros((part.shape[0], width - part.shape[1], *part.shape[2:]))
        wide.append(torch.cat([empty, part] if left else [part, empty], 1))
    return torch.cat(wide)

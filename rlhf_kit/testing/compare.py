"""What the conformance checks share: comparing, dirtying, and saying what broke."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlhf_kit.testing.sentences import require

# What the checks leave in padding. Both must be harmless: 1e9 overflows in exp, NaN spreads.
GARBAGE = (1e9, float("nan"))


def same(found: Tensor, wanted: Tensor, sentence: str, *, rtol: float = 1e-4) -> None:
    """Require equal values up to float32 rounding; the sentence is followed by the numbers."""
    require(
        found.shape == wanted.shape,
        f"{sentence} (shape {list(found.shape)} against {list(wanted.shape)})",
    )
    atol = rtol * max(1.0, wanted.abs().max().item() if wanted.numel() else 1.0)
    close = torch.isclose(found.double(), wanted.double(), rtol=rtol, atol=atol)
    if not bool(close.all()):
        place = tuple((~close).nonzero()[0].tolist())
        at = f" at {list(place)}" if place else ""
        raise AssertionError(
            f"{sentence} (got {found[place].item():.6g}, should be {wanted[place].item():.6g}{at})"
        )


def finite(x: Tensor, sentence: str) -> None:
    """Require finite values."""
    require(bool(torch.isfinite(x).all()), sentence)


def float32(x: Any, shape: list[int], what: str) -> None:
    """Require a float32 tensor of a shape."""
    require(isinstance(x, Tensor), f"{what} should be a torch.Tensor, got {type(x).__name__}")
    require(list(x.shape) == shape, f"{what} should have shape {shape}, got shape {list(x.shape)}")
    require(x.dtype == torch.float32, f"{what} should be float32, got {x.dtype}")


def dirtied(x: Tensor, mask: Tensor, garbage: float) -> Tensor:
    """A copy of ``x`` with garbage where ``mask`` is False; integers get -7, bools True."""
    if x.dtype == torch.bool:
        return x | ~mask
    return torch.where(mask, x, garbage if x.is_floating_point() else -7)


def widened(x: Tensor, columns: int) -> Tensor:
    """``x`` with more columns of padding: False in masks, garbage elsewhere."""
    value: Any = False if x.dtype == torch.bool else 1e9 if x.is_floating_point() else -7
    return torch.cat([x, x.new_full((x.shape[0], columns), value)], 1)


def clean_masks(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """[rows, columns] bool like response masks: valid from the left, at least one token each."""
    lengths = torch.randint(1, columns + 1, (rows, 1), generator=generator)
    lengths[0] = columns
    return torch.arange(columns) < lengths

"""What the comparisons with other implementations share.

Without the peer, or with another version of it, a module is skipped. `make test-peers` installs
each peer and sets RLHF_KIT_PEERS=required, under which that is an error: CI cannot skip.
"""

from __future__ import annotations

import os
from importlib import metadata

import pytest
import torch
from torch import Tensor

SEEDS = range(6)


def need(distribution: str, version: str) -> None:
    """Skip the calling module, or fail where peers are required, unless this version is here."""
    try:
        found = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        found = "nothing"
    if found == version:
        return
    message = f"{distribution} {version} is needed, {found} is installed: run `make test-peers`"
    if os.environ.get("RLHF_KIT_PEERS") == "required":
        pytest.fail(message, pytrace=False)
    pytest.skip(message, allow_module_level=True)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lengths(seed: int, rows: int, width: int) -> Tensor:
    """[rows] response lengths of which one is ``width`` and one is 1."""
    found = torch.randint(1, width + 1, (rows,), generator=torch.Generator().manual_seed(90 + seed))
    found[0], found[1] = width, 1
    return found


def right_padded(seed: int, rows: int, width: int) -> Tensor:
    """[rows, width] bool: responses of these lengths."""
    return torch.arange(width) < lengths(seed, rows, width)[:, None]


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)

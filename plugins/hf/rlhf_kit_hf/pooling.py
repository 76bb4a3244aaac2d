"""From the states of tokens to one state per text."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kit.ops.sequence import last_index

POOLINGS = ("last", "mean")


def pool(hidden: Tensor, places: Tensor, how: str) -> Tensor:
    """The state at the last of some places ("last"), or the average over them ("mean").

    Args:
        hidden: [B, T, H]; what stands outside all places may be anything.
        places: [B, K, T] bool, the places of each of K texts of a row.

    Returns:
        [B, K, H] float32, zero for a text without places.
    """
    if how == "last":
        rows, count, width = places.shape
        columns = last_index(places.reshape(-1, width)).view(rows, count)
        chosen = hidden[torch.arange(rows, device=hidden.device)[:, None], columns].float()
        return torch.where(places.any(2)[..., None], chosen, 0.0)
    clean = torch.where(places.any(1)[..., None], hidden.float(), 0.0)
    return places.float() @ clean / places.sum(2, keepdim=True).clamp(min=1)

"""A loss on held-out data, where nothing is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from rlhf_kit.interfaces import Loss, ObservingLoss, Term

Batch = TypeVar("Batch")


def observed(loss: Loss | ObservingLoss, inputs: Iterable[Any]) -> dict[str, Tensor]:
    """The sums over all ``inputs`` that ``loss`` asks for; nothing if it asks for none."""
    sums: dict[str, Tensor] = {}
    if isinstance(loss, ObservingLoss):
        with torch.no_grad():
            for each in inputs:
                for key, value in loss.observe(each).items():
                    sums[key] = sums.get(key, torch.zeros(())) + value
    return sums


@torch.no_grad()
def held_out_loss(
    term: Term, batches: Sequence[Batch], inputs: Callable[[Batch], Any]
) -> dict[str, float]:
    """``loss`` and every statistic per unit counted, over all of ``batches``.

    Divided once, by all units, as in training.
    """
    seen: Mapping[str, Tensor] = observed(term.loss, map(inputs, batches))
    sums: dict[str, float] = {}
    count = 0.0
    for batch in batches:
        output = term.output(inputs(batch), seen)
        for key, value in {"loss": output.total, **output.stats}.items():
            sums[key] = sums.get(key, 0.0) + value.item()
        count += term.loss.count(term.counted(batch)).item()
    return {key: value / max(count, 1.0) for key, value in sums.items()}

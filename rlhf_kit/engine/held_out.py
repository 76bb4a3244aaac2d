"""A loss on held-out data, where nothing is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from rlhf_kit.engine.observed import observed
from rlhf_kit.engine.terms import count_of, output_of
from rlhf_kit.interfaces import Term

Batch = TypeVar("Batch")


@torch.no_grad()
def held_out_loss(
    term: Term, batches: Sequence[Batch], inputs: Callable[[Batch], Any]
) -> dict[str, float]:
    """``loss`` and every statistic per unit counted, over all of ``batches``.

    Divided once, by all units, as in training.
    """
    seen = observed({"": term}, lambda batch: {"": inputs(batch)}, batches)[""]
    sums: dict[str, float] = {}
    count = 0.0
    for batch in batches:
        output = output_of(term, inputs(batch), seen, "")
        for key, value in {"loss": output.total, **output.stats}.items():
            sums[key] = sums.get(key, 0.0) + value.item()
        count += count_of(term, term.counted(batch), "").item()
    return {key: value / max(count, 1.0) for key, value in sums.items()}

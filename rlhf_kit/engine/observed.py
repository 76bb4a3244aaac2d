"""What losses ask to know of a whole step, or of all held-out data, before they are called."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from rlhf_kit.engine.terms import observed_by
from rlhf_kit.engine.world import ALONE
from rlhf_kit.interfaces import ObservingLoss, Term, World

Batch = TypeVar("Batch")


@torch.no_grad()
def observed(
    terms: Mapping[str, Term],
    inputs: Callable[[Batch], Mapping[str, Any]],
    batches: Sequence[Batch],
    world: World = ALONE,
) -> dict[str, dict[str, Tensor]]:
    """Of each term the sums over all ``batches``, and all ranks, that its loss asks for.

    ``inputs`` maps a batch to what each term reads; it is not called where no term observes that.
    """
    sums: dict[str, dict[str, Tensor]] = {name: {} for name in terms}
    asking = {n: t for n, t in terms.items() if isinstance(t.loss, ObservingLoss)}
    shared = any(term.observed is None for term in asking.values())
    for batch in batches if asking else ():
        read = inputs(batch) if shared else {}
        for name, term in asking.items():
            given = read[name] if term.observed is None else term.observed(batch)
            seen = observed_by(term, given, name)
            for key, value in seen.items():
                sums[name][key] = sums[name].get(key, torch.zeros(())) + value
    return {n: {k: world.sum(x) for k, x in found.items()} for n, found in sums.items()}

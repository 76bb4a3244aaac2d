"""Gradient accumulation that cannot change a gradient.

Losses return sums. The count of the whole optimizer step is known from the masks before the first
forward pass, so each micro-batch is divided by the same number, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from rlhf_kit.engine.optim import Optimizer
from rlhf_kit.errors import NumericsError
from rlhf_kit.interfaces import Loss

Micro = TypeVar("Micro")


@dataclass(frozen=True)
class Term:
    """One loss of the objective and its weight."""

    loss: Loss
    weight: float = 1.0


@dataclass
class Step:
    """One optimizer step under construction."""

    stats: dict[str, float] = field(default_factory=dict)

    def add(
        self,
        terms: Mapping[str, Term],
        forward: Callable[[Micro], Mapping[str, Any]],
        micro_batches: Sequence[Micro],
    ) -> None:
        """Accumulate the gradients of ``terms`` over ``micro_batches``.

        ``forward`` maps a micro-batch to the inputs of each term; terms that share a forward pass
        travel in one call. Statistics become ``name/statistic`` means over the step.

        Raises:
            NumericsError: a loss is not finite. Nothing has been updated then.
        """
        counts = {
            name: sum((term.loss.count(m) for m in micro_batches), torch.zeros(())).clamp(min=1)
            for name, term in terms.items()
        }
        sums: dict[str, Tensor] = {}
        for micro in micro_batches:
            inputs = forward(micro)
            total = torch.zeros(())
            for name, term in terms.items():
                output = term.loss(inputs[name])
                if not torch.isfinite(output.total):
                    raise NumericsError(
                        f"loss {name!r} is {output.total.item()}: the step was not taken"
                    )
                total = total + output.total * (term.weight / counts[name])
                for key, value in {"loss": output.total, **output.stats}.items():
                    key = f"{name}/{key}"
                    sums[key] = sums.get(key, torch.zeros(())) + value.detach() / counts[name]
            total.backward()
        self.stats.update({key: value.item() for key, value in sums.items()})


@contextmanager
def accumulating(optimizer: Optimizer) -> Iterator[Step]:
    """Clear the gradients, let the body add terms, then take one optimizer step."""
    optimizer.zero_grad()
    step = Step()
    yield step
    step.stats["gradient_norm"] = optimizer.step()

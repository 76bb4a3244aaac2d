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
from torch.nn import Parameter

from rlhf_kit.engine.observed import observed
from rlhf_kit.engine.terms import count_of, output_of, total_count
from rlhf_kit.engine.world import ALONE
from rlhf_kit.interfaces import Optimizer, Step, Term, World

Micro = TypeVar("Micro")


@dataclass
class AccumulatingStep:
    """Implements rlhf_kit.interfaces.Step."""

    optimizer: Optimizer
    watched: Sequence[Parameter] = ()  # whose gradient norm is reported for each labelled `add`
    world: World = ALONE
    stats: dict[str, float] = field(default_factory=dict)

    def add(
        self,
        terms: Mapping[str, Term],
        forward: Callable[[Micro], Mapping[str, Any]],
        micro_batches: Sequence[Micro],
        label: str | None = None,
    ) -> None:
        """See rlhf_kit.interfaces.Step.add."""
        counts = {name: self._count(name, term, micro_batches) for name, term in terms.items()}
        seen = observed(terms, forward, micro_batches, self.world)
        sums: dict[str, Tensor] = {}
        before = self._gradients() if label is not None else []
        for micro in micro_batches:
            inputs = forward(micro)
            total = torch.zeros(())
            for name, term in terms.items():
                output = output_of(term, inputs[name], seen[name], name)
                total = total + output.total * (term.weight / counts[name])
                for key, value in {"loss": output.total, **output.stats}.items():
                    key = f"{name}/{key}"
                    sums[key] = sums.get(key, torch.zeros(())) + value.detach() / counts[name]
            total.backward()
            self.optimizer.absorb()
        self.stats.update({key: value.item() for key, value in sums.items()})
        if label is not None and self.watched:
            self.stats[f"gradient_norm/{label}"] = self._added(before)

    def _count(self, name: str, term: Term, micro_batches: Sequence[Any]) -> Tensor:
        """Of the whole step, over all ranks; at least 1, where nothing is counted."""
        counts = torch.zeros(())
        for micro in micro_batches:
            counts = counts + count_of(term, term.counted(micro), name)
        return total_count(term, self.world.sum(counts), name)

    def _gradients(self) -> list[Tensor | None]:
        found = self.optimizer.gradients(self.watched)
        return [None if gradient is None else gradient.clone() for gradient in found]

    def _added(self, before: Sequence[Tensor | None]) -> float:
        """The norm of the watched gradients less what they were."""
        norms = [
            torch.linalg.vector_norm(new if old is None else new - old)
            for new, old in zip(self.optimizer.gradients(self.watched), before, strict=True)
            if new is not None
        ]
        return torch.stack(norms).norm().item() if norms else 0.0


@contextmanager
def accumulating(
    optimizer: Optimizer, watch: Sequence[Parameter] = (), world: World = ALONE
) -> Iterator[Step]:
    """Clear the gradients, let the body add terms, then take one optimizer step."""
    optimizer.zero_grad()
    step = AccumulatingStep(optimizer, watch, world)
    yield step
    step.stats["gradient_norm"] = optimizer.step()

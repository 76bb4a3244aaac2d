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

from rlhf_kit.engine.optim import Optimizer
from rlhf_kit.errors import NumericsError
from rlhf_kit.interfaces import Loss, ObservingLoss
from rlhf_kit.types import LossOutput

Micro = TypeVar("Micro")


@dataclass(frozen=True)
class Term:
    """One loss of the objective, what of a micro-batch it counts, and its weight."""

    loss: Loss | ObservingLoss
    counted: Callable[[Any], Any]
    weight: float = 1.0

    def output(self, inputs: Any, observed: Mapping[str, Tensor]) -> LossOutput:
        """The loss of one micro-batch; ``observed`` are sums over the whole step."""
        if isinstance(self.loss, ObservingLoss):
            return self.loss(inputs, observed)
        return self.loss(inputs)


@dataclass
class Step:
    """One optimizer step under construction."""

    optimizer: Optimizer
    watched: Sequence[Parameter] = ()  # whose gradient norm is reported for each labelled `add`
    stats: dict[str, float] = field(default_factory=dict)

    def add(
        self,
        terms: Mapping[str, Term],
        forward: Callable[[Micro], Mapping[str, Any]],
        micro_batches: Sequence[Micro],
        label: str | None = None,
    ) -> None:
        """Accumulate the gradients of ``terms`` over ``micro_batches``.

        ``forward`` maps a micro-batch to the inputs of each term; terms that share a forward pass
        travel in one call. Statistics become ``name/statistic`` means over the step, and
        ``gradient_norm/label`` is the norm of what this call has added to the watched gradients.

        Raises:
            NumericsError: a loss is not finite. Nothing has been updated then.
        """
        counts = {name: _count(term, micro_batches) for name, term in terms.items()}
        observed = _observed(terms, forward, micro_batches)
        sums: dict[str, Tensor] = {}
        before = self._gradients() if label is not None else []
        for micro in micro_batches:
            inputs = forward(micro)
            total = torch.zeros(())
            for name, term in terms.items():
                output = term.output(inputs[name], observed[name])
                if not torch.isfinite(output.total):
                    raise NumericsError(
                        f"loss {name!r} is {output.total.item()}: the step was not taken"
                    )
                total = total + output.total * (term.weight / counts[name])
                for key, value in {"loss": output.total, **output.stats}.items():
                    key = f"{name}/{key}"
                    sums[key] = sums.get(key, torch.zeros(())) + value.detach() / counts[name]
            total.backward()
            self.optimizer.absorb()
        self.stats.update({key: value.item() for key, value in sums.items()})
        if label is not None and self.watched:
            self.stats[f"gradient_norm/{label}"] = self._added(before)

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


def _count(term: Term, micro_batches: Sequence[Any]) -> Tensor:
    counts = (term.loss.count(term.counted(micro)) for micro in micro_batches)
    return sum(counts, torch.zeros(())).clamp(min=1)


@torch.no_grad()
def _observed(
    terms: Mapping[str, Term],
    forward: Callable[[Micro], Mapping[str, Any]],
    micro_batches: Sequence[Micro],
) -> dict[str, dict[str, Tensor]]:
    """Of each term the sums over the whole step that its loss has asked for."""
    sums: dict[str, dict[str, Tensor]] = {name: {} for name in terms}
    asking = {n: t.loss for n, t in terms.items() if isinstance(t.loss, ObservingLoss)}
    for micro in micro_batches if asking else ():
        inputs = forward(micro)
        for name, loss in asking.items():
            for key, value in loss.observe(inputs[name]).items():
                sums[name][key] = sums[name].get(key, torch.zeros(())) + value
    return sums


@contextmanager
def accumulating(optimizer: Optimizer, watch: Sequence[Parameter] = ()) -> Iterator[Step]:
    """Clear the gradients, let the body add terms, then take one optimizer step."""
    optimizer.zero_grad()
    step = Step(optimizer, watch)
    yield step
    step.stats["gradient_norm"] = optimizer.step()

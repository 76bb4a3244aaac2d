"""Who owns the ranks: the engine takes every step, and alone touches optimizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor
from torch.nn import Parameter

from rlhf_kit.interfaces.loss import AnyLoss, ObservingLoss
from rlhf_kit.interfaces.state import Stateful
from rlhf_kit.stage_options import OptimizerOptions
from rlhf_kit.types import LossOutput

Schedule = Callable[[int], float]
"""Step -> factor of the learning rate."""

Micro = TypeVar("Micro")


class World(Protocol):
    """The processes that train together."""

    @property
    def rank(self) -> int:
        """Of this process, from 0."""

    @property
    def size(self) -> int:
        """How many there are."""

    def sum(self, x: Tensor) -> Tensor:
        """``x`` added up over all ranks, of the same shape everywhere; every rank must call."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate."""

    parameters: Sequence[Parameter]
    learning_rate: float
    schedule: Schedule | None = None  # None: the optimizer's


class Optimizer(Stateful, Protocol):
    """What an engine made of parameter groups. A stage reads it and saves it; it never steps."""

    @property
    def learning_rates(self) -> list[float]:
        """The rates that the next step will use, by group."""

    def precise(self, parameters: Sequence[Parameter]) -> list[Tensor]:
        """The weights of ``parameters`` at full precision, of which the model's may be a copy."""

    def zero_grad(self) -> None: ...

    def absorb(self) -> None:
        """Take the gradients of one backward pass in; called after every one."""

    def gradients(self, parameters: Sequence[Parameter]) -> list[Tensor | None]:
        """What has been summed for ``parameters`` since ``zero_grad``, at full precision."""

    def step(self) -> float:
        """Take one step. Returns the gradient norm before clipping.

        Raises:
            NumericsError: the gradient is not finite; the weights are unchanged.
        """


@dataclass(frozen=True)
class Term:
    """One loss of the objective, what of a micro-batch it counts, and its weight."""

    loss: AnyLoss[Any, Any]
    counted: Callable[[Any], Any]
    weight: float = 1.0
    observed: Callable[[Any], Any] | None = None  # what `observe` reads; None: what the loss reads

    def output(self, inputs: Any, observed: Mapping[str, Tensor]) -> LossOutput:
        """The loss of one micro-batch; ``observed`` are sums over the whole step."""
        if isinstance(self.loss, ObservingLoss):
            return self.loss(inputs, observed)
        return self.loss(inputs)


class Step(Protocol):
    """One optimizer step under construction."""

    stats: dict[str, float]
    """Means over the step; complete, with ``gradient_norm``, when the step has been taken."""

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


class Engine(Protocol):
    """How a stage trains: over which ranks, with which optimizer. It exists before the memory."""

    @property
    def world(self) -> World: ...

    def optimizer(
        self, groups: Sequence[ParameterGroup], options: OptimizerOptions, total_steps: int
    ) -> Optimizer:
        """The optimizer of a stage, one for all it trains; a schedule ends at ``total_steps``."""

    def step(
        self, optimizer: Optimizer, watch: Sequence[Parameter] = ()
    ) -> AbstractContextManager[Step]:
        """One optimizer step: gradients are cleared, the body adds terms, the step is taken.

        ``watch`` are the parameters whose gradient norm is reported for each labelled ``add``.
        """

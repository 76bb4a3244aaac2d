"""Losses return sums; the engine divides once, by the count of the whole optimizer step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from rlhf_kit.types import LossOutput

Inputs = TypeVar("Inputs", contravariant=True)
Units = TypeVar("Units", contravariant=True)


class Loss(Protocol[Inputs, Units]):
    """``Units`` is what is known of a micro-batch before the forward pass: its masks or ranks."""

    def count(self, units: Units) -> Tensor:
        """[] how many units (tokens, responses, prompts) the sum runs over."""

    def __call__(self, inputs: Inputs) -> LossOutput:
        """The sum over those units, and statistics that are sums over them too."""


@runtime_checkable
class ObservingLoss(Protocol[Inputs, Units]):
    """A loss that needs figures of the whole optimizer step, such as KTO's baseline.

    Before the gradients the engine calls ``observe`` with every micro-batch, without gradients,
    adds up what comes back, over all processes too, and hands the sums to every call. So the loss
    itself keeps no state, and micro-batches change nothing. It costs one more forward pass, of what
    the loss reads or of what its term says that it observes.
    """

    def count(self, units: Units) -> Tensor: ...

    def observe(self, inputs: Any) -> Mapping[str, Tensor]:
        """name -> [], a sum over the micro-batch. The same names each time."""

    def __call__(self, inputs: Inputs, observed: Mapping[str, Tensor]) -> LossOutput: ...


AnyLoss = Loss[Inputs, Units] | ObservingLoss[Inputs, Units]

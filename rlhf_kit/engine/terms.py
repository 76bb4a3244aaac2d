"""Asking a loss: what it returns must be what its seam promises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_kit.engine.foreign import first_call, foreign, scalar, shape_of, untouched
from rlhf_kit.errors import NumericsError, PluginError
from rlhf_kit.interfaces import ObservingLoss, Term
from rlhf_kit.origins import Whose
from rlhf_kit.types import LossOutput


def _name(name: str) -> str:
    return f"loss {name!r}" if name else "loss"


def output_of(term: Term, inputs: Any, observed: Mapping[str, Tensor], name: str) -> LossOutput:
    """What a loss says of a micro-batch.

    Raises:
        PluginError: it is no LossOutput of tensors of shape [], or does not depend on what is
            trained, where something is.
        NumericsError: the total is not finite.
    """
    who = Whose(term.loss, _name(name))
    with foreign(who), untouched(inputs, "inputs", who, first_call(term.loss)):
        output = term.output(inputs, observed)
    if not isinstance(output, LossOutput):
        raise PluginError(
            f"{who} returned {type(output).__name__}; it should return a rlhf_kit.types.LossOutput"
        )
    if not torch.isfinite(scalar(output.total, who, "total")):
        where = "the step was not taken" if torch.is_grad_enabled() else "on held-out data"
        raise NumericsError(f"{who} is {output.total.item()}: {where}{_blame(inputs)}")
    if torch.is_grad_enabled() and not output.total.requires_grad:
        raise PluginError(
            f"{who}: total does not depend on what is trained; compute it from the inputs, "
            "without detach() or item()"
        )
    if not isinstance(output.stats, Mapping):
        raise PluginError(f"{who}: stats are {shape_of(output.stats)}; they should be a dict")
    for key, value in output.stats.items():
        if not isinstance(value, Tensor) or value.dim():
            scalar(value, who, f"statistic {key!r}")
    if "loss" in output.stats:
        raise PluginError(f"{who}: a statistic is called 'loss', as the total is; rename it")
    return output


def count_of(term: Term, units: Any, name: str) -> Tensor:
    """[] how many units a loss counts in a micro-batch.

    Raises:
        PluginError: it is no tensor of shape [].
    """
    who = Whose(term.loss, _name(name), "count")
    with foreign(who):
        found = term.loss.count(units)
    return scalar(found, who)


def total_count(term: Term, total: Tensor, name: str) -> Tensor:
    """What is counted of a whole step; at least 1, where nothing is.

    Raises:
        PluginError: it is not 0 or more.
    """
    if not total >= 0:
        who = Whose(term.loss, _name(name), "count")
        raise PluginError(f"{who} is {total.item()}; it should be 0 or more")
    return total.clamp(min=1)


def observed_by(term: Term, inputs: Any, name: str) -> dict[str, Tensor]:
    """name -> [], what an observing loss adds up over the micro-batches.

    Raises:
        PluginError: something else.
    """
    assert isinstance(term.loss, ObservingLoss)
    who = Whose(term.loss, _name(name), "observe")
    with foreign(who), untouched(inputs, "inputs", who, first_call(term.loss)):
        found = term.loss.observe(inputs)
    if not isinstance(found, Mapping):
        raise PluginError(
            f"{who} returned {type(found).__name__}; it should return a dict of tensors of shape []"
        )
    return {key: scalar(x, who, repr(key)) for key, x in found.items()}


def _blame(inputs: Any) -> str:
    """Of a loss that is not finite: what it was given that was not finite before."""
    bad = [name for name, x in _tensors(inputs) if not bool(torch.isfinite(x).all())]
    return f"; it was given {' and '.join(bad)} that are not finite" if bad else ""


def _tensors(inputs: Any) -> Iterator[tuple[str, Tensor]]:
    """Each field [B, ...], zero where the mask of the same shape is False."""
    named = (
        {f.name: getattr(inputs, f.name) for f in fields(inputs)} if is_dataclass(inputs) else {}
    )
    mask = named.get("mask")
    for name, x in named.items():
        if isinstance(x, Tensor):
            same = isinstance(mask, Tensor) and mask.shape == x.shape
            yield name, torch.where(mask, x.detach(), 0) if same else x.detach()

"""AdamW over float32 master weights, with clipping and a learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from rlhf_kit.errors import NumericsError
from rlhf_kit.interfaces import ParameterGroup, Schedule

_FULL = (torch.float32, torch.float64)  # precise enough to be updated in place


def constant(warmup: int = 0, start: float = 0.1) -> Schedule:
    """Factor 1 after ``warmup`` steps that rise linearly from ``start``.

    PPO of arXiv:2203.02155, appendix C.4: 10 iterations from one tenth of the peak.
    """
    return lambda step: 1.0 if step >= warmup else start + (1.0 - start) * step / warmup


def cosine(total: int, floor: float = 0.1, warmup: int = 0) -> Schedule:
    """Cosine from 1 to ``floor`` over ``total`` steps (arXiv:2203.02155, appendix C: to 10 %)."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return factor


class Optimizer:
    """AdamW whose moments and weights are float32, whatever the model's own precision.

    A bfloat16 weight has 8 bits of mantissa: an update below 1/256 of the weight would vanish.
    Each trained parameter of lower precision therefore has a float32 master copy here.
    """

    def __init__(
        self,
        groups: Iterable[ParameterGroup],
        *,
        schedule: Schedule | None = None,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_gradient_norm: float | None = 1.0,
    ) -> None:
        groups = [g for g in groups if g.parameters]
        self._model = [p for g in groups for p in g.parameters]
        self._rates = [g.learning_rate for g in groups]
        schedule = schedule or constant()
        self._schedules = [g.schedule or schedule for g in groups]
        self._max_norm = math.inf if max_gradient_norm is None else max_gradient_norm
        self._step = 0
        masters = [
            [p if p.dtype in _FULL else p.detach().float().clone() for p in g.parameters]
            for g in groups
        ]
        self._masters = [m for group in masters for m in group]
        self._adam = torch.optim.AdamW(
            [{"params": group} for group in masters],
            lr=0.0,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
        )

    def zero_grad(self) -> None:
        for parameter in (*self._model, *self._masters):
            parameter.grad = None

    @torch.no_grad()
    def absorb(self) -> None:
        """Add gradients of lower precision to float32 sums; call it after every backward pass.

        Left to autograd they would be summed in bfloat16: over hundreds of micro-batches a small
        gradient is lost in the rounding of a large one.
        """
        for model, master in zip(self._model, self._masters, strict=True):
            if master is not model and model.grad is not None:
                gradient = model.grad.float()
                master.grad = gradient if master.grad is None else master.grad.add_(gradient)
                model.grad = None

    def gradients(self, parameters: Sequence[Parameter]) -> list[Tensor | None]:
        """What has been summed for ``parameters`` since ``zero_grad``, at full precision."""
        masters = {id(p): m for p, m in zip(self._model, self._masters, strict=True)}
        return [masters[id(p)].grad for p in parameters]

    def step(self) -> float:
        """Take one step. Returns the gradient norm before clipping.

        Raises:
            NumericsError: the gradient is not finite; the weights are unchanged.
        """
        self.absorb()
        norm = torch.nn.utils.clip_grad_norm_(self._masters, self._max_norm).item()
        if not math.isfinite(norm):
            raise NumericsError(f"the gradient norm is {norm}: the step was not taken")
        for group, rate in zip(self._adam.param_groups, self.learning_rates, strict=True):
            group["lr"] = rate
        self._adam.step()
        self._adam.zero_grad()
        self._step += 1
        self._copy_back()
        return norm

    @torch.no_grad()
    def _copy_back(self) -> None:
        for model, master in zip(self._model, self._masters, strict=True):
            if master is not model:
                model.copy_(master)

    def precise(self, parameters: Sequence[Parameter]) -> list[Tensor]:
        """The weights of ``parameters`` at full precision: the masters where there are any."""
        masters = {id(p): m for p, m in zip(self._model, self._masters, strict=True)}
        return [masters[id(p)].detach() for p in parameters]

    @property
    def learning_rates(self) -> list[float]:
        """The rates that the next step will use."""
        pairs = zip(self._rates, self._schedules, strict=True)
        return [rate * schedule(self._step) for rate, schedule in pairs]

    def state_dict(self) -> dict[str, Any]:
        masters = [
            None if m is p else m.detach() for p, m in zip(self._model, self._masters, strict=True)
        ]
        return {"step": self._step, "adam": self._adam.state_dict(), "masters": masters}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._step = state["step"]
        self._adam.load_state_dict(state["adam"])
        pairs = zip(self._model, self._masters, state["masters"], strict=True)
        for model, master, saved in pairs:
            # Without a saved master the weight itself, restored before this, is the full precision.
            master.copy_(model if saved is None else saved)
        self._copy_back()

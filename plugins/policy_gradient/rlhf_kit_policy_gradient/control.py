"""Controllers of the KL coefficient beta and of the pretraining coefficient gamma, and a bound."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from rlhf_kit.engine.snapshot import Snapshot
from rlhf_kit.interfaces import Stateful
from rlhf_kit_policy_gradient.options import (
    AdaptiveKLOptions,
    AdaptivePtxOptions,
    FixedKLOptions,
    FixedPtxOptions,
    KLOptions,
)

Verdict = Literal["go on", "stop", "rollback"]


class FixedKL:
    """beta stays as the recipe gives it, as in InstructGPT."""

    def __init__(self, options: FixedKLOptions) -> None:
        pass

    def __call__(self, coefficient: float, kl: float, samples: int) -> float:
        return coefficient


class AdaptiveKL:
    """``beta *= 1 + clip(KL / target - 1, -0.2, 0.2) n / horizon`` (arXiv:1909.08593, sec. 2.2).

    Never below ``least``: of 0, which a rollout of five horizons would make, nothing comes back.
    """

    def __init__(self, options: AdaptiveKLOptions) -> None:
        self._options = options

    def __call__(self, coefficient: float, kl: float, samples: int) -> float:
        error = min(max(kl / self._options.target - 1.0, -0.2), 0.2)
        factor = 1.0 + error * samples / self._options.horizon
        return max(coefficient * factor, self._options.least)


class FixedPtx:
    """gamma stays as the recipe gives it, as in InstructGPT."""

    every = 0

    def __init__(self, options: FixedPtxOptions) -> None:
        pass

    def __call__(self, coefficient: float, perplexity: float) -> float:
        return coefficient


class AdaptivePtx:
    """gamma rises while the held-out perplexity is over its budget, and falls while it is under.

    With p0 the perplexity before any update and budget b, each measurement p multiplies gamma by
    ``exp(gain * clip((p - p0 (1 + b)) / (p0 b), -1, 1))``: e^-gain at the start of the budget, 1
    at its end. Of our own; the paper's gamma is fixed.
    """

    def __init__(self, options: AdaptivePtxOptions) -> None:
        self._options, self.every = options, options.every
        self._first: float | None = None

    def __call__(self, coefficient: float, perplexity: float) -> float:
        o = self._options
        if self._first is None:
            self._first = perplexity  # nothing has been trained yet: there is nothing to correct
            return coefficient
        over = (perplexity - self._first * (1 + o.budget)) / (self._first * o.budget)
        factor = math.exp(o.gain * min(max(over, -1.0), 1.0))
        return min(max(coefficient * factor, o.least), o.most)

    def state_dict(self) -> dict[str, Any]:
        return {"first": self._first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._first = state["first"]


class KLLimit:
    """Ends the training, or takes it back, when the KL of a rollout passes a bound.

    ``parts`` are what a rollout changes: all that is taken back.
    """

    def __init__(self, options: KLOptions) -> None:
        self._options = options
        self._good = Snapshot()  # of the parts at the last rollout within bounds
        self.rollbacks = 0

    def check(self, kl: float, parts: Mapping[str, Stateful]) -> Verdict:
        """Judge a rollout before it is learned from; keep what gave it if it may be needed."""
        o = self._options
        if o.limit is None:
            return "go on"
        if kl <= o.limit:
            if o.on_limit == "rollback":
                self._good.take(parts)
            return "go on"
        return "rollback" if o.on_limit == "rollback" and self._good else "stop"

    def take_back(self, coefficient: float, parts: Mapping[str, Stateful]) -> float:
        """Put the last parts within the bound back; the coefficient to go on with."""
        self._good.restore(parts)
        self.rollbacks += 1
        return coefficient * self._options.rollback_factor

    def state_dict(self) -> dict[str, Any]:
        return {"good": self._good.state_dict(), "rollbacks": self.rollbacks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._good.load_state_dict(state["good"])
        self.rollbacks = state["rollbacks"]

"""Controllers of the KL coefficient beta and of the pretraining coefficient gamma, and a bound."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from rlhf_kit.engine.snapshot import Snapshot
from rlhf_kit.errors import NumericsError
from rlhf_kit.interfaces import KLController, Stateful
from rlhf_kit_policy_gradient.options import (
    AdaptiveKLOptions,
    AdaptivePtxOptions,
    FixedKLOptions,
    FixedPtxOptions,
)


class FixedKL:
    """beta stays as the recipe gives it, as in InstructGPT."""

    def __init__(self, options: FixedKLOptions) -> None:
        self.coefficient = 0.0

    def update(self, kl: float, samples: int) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.coefficient = state["coefficient"]


class AdaptiveKL:
    """``beta *= 1 + clip(KL / target - 1, -0.2, 0.2) n / horizon`` (arXiv:1909.08593, sec. 2.2).

    Never below ``least``: of 0, which a rollout of five horizons would make, nothing comes back.
    """

    def __init__(self, options: AdaptiveKLOptions) -> None:
        self._options = options
        self.coefficient = 0.0

    def update(self, kl: float, samples: int) -> None:
        error = min(max(kl / self._options.target - 1.0, -0.2), 0.2)
        factor = 1.0 + error * samples / self._options.horizon
        self.coefficient = max(self.coefficient * factor, self._options.least)

    def state_dict(self) -> dict[str, Any]:
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.coefficient = state["coefficient"]


class FixedPtx:
    """gamma stays as the recipe gives it, as in InstructGPT."""

    every = 0

    def __init__(self, options: FixedPtxOptions) -> None:
        self.coefficient = 0.0

    def update(self, perplexity: float) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.coefficient = state["coefficient"]


class AdaptivePtx:
    """gamma rises while the held-out perplexity is over its budget, and falls while it is under.

    With p0 the perplexity before any update and budget b, each measurement p multiplies gamma by
    ``exp(gain * clip((p - p0 (1 + b)) / (p0 b), -1, 1))``: e^-gain at the start of the budget, 1
    at its end. Of our own; the paper's gamma is fixed.
    """

    def __init__(self, options: AdaptivePtxOptions) -> None:
        self._options, self.every = options, options.every
        self.coefficient = 0.0
        self._first: float | None = None

    def update(self, perplexity: float) -> None:
        o = self._options
        if self._first is None:
            self._first = perplexity  # nothing has been trained yet: there is nothing to correct
            return
        over = (perplexity - self._first * (1 + o.budget)) / (self._first * o.budget)
        factor = math.exp(o.gain * min(max(over, -1.0), 1.0))
        self.coefficient = min(max(self.coefficient * factor, o.least), o.most)

    def state_dict(self) -> dict[str, Any]:
        return {"coefficient": self.coefficient, "first": self._first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.coefficient, self._first = state["coefficient"], state["first"]


class KLLimit:
    """Ends the training, or takes it back, when the KL of a rollout passes a bound."""

    def __init__(
        self, limit: float | None, action: str, factor: float, parts: Mapping[str, Stateful]
    ) -> None:
        self._limit, self._action, self._factor = limit, action, factor
        self._good = Snapshot(parts)  # as they were at the last rollout within bounds
        self.rollbacks = 0

    def check(self, kl: float) -> Literal["go on", "stop", "rollback"]:
        """Judge a rollout before it is learned from; keep what gave it if it may be needed."""
        if self._limit is None:
            return "go on"
        if kl <= self._limit:
            if self._action == "rollback":
                self._good.take()
            return "go on"
        return "rollback" if self._action == "rollback" and self._good else "stop"

    def take_back(self, controller: KLController) -> None:
        """Put the last weights within the bound back, and raise the coefficient.

        Raises:
            NumericsError: the coefficient is 0: the same rollout would come back for ever.
        """
        if controller.coefficient == 0:
            raise NumericsError(
                "kl_limit: the KL is over its bound and kl_coef is 0, which no factor raises; "
                "start from a larger kl_coef, or set on_kl_limit: stop"
            )
        self._good.restore()
        controller.coefficient *= self._factor
        self.rollbacks += 1

    def state_dict(self) -> dict[str, Any]:
        return {"good": self._good.state_dict(), "rollbacks": self.rollbacks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._good.load_state_dict(state["good"])
        self.rollbacks = state["rollbacks"]

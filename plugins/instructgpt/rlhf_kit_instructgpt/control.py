"""Controllers of the KL coefficient beta."""

from __future__ import annotations

from typing import Any

from rlhf_kit_instructgpt.options import AdaptiveKLOptions, FixedKLOptions


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
    """``beta *= 1 + clip(KL / target - 1, -0.2, 0.2) n / horizon`` (arXiv:1909.08593, sec. 2.2)."""

    def __init__(self, options: AdaptiveKLOptions) -> None:
        self._options = options
        self.coefficient = 0.0

    def update(self, kl: float, samples: int) -> None:
        error = min(max(kl / self._options.target - 1.0, -0.2), 0.2)
        # A rollout larger than the horizon must not turn the penalty into a reward.
        self.coefficient *= max(0.0, 1.0 + error * samples / self._options.horizon)

    def state_dict(self) -> dict[str, Any]:
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.coefficient = state["coefficient"]

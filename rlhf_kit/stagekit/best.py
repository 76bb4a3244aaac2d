"""The best weights seen so far."""

from __future__ import annotations

import math
from typing import Any

from rlhf_kit.engine.snapshot import Snapshot
from rlhf_kit.errors import NumericsError
from rlhf_kit.interfaces import Trainable


class Best:
    """Keeps a copy of a model's state whenever the loss offered is the lowest yet."""

    def __init__(self, model: Trainable) -> None:
        self._model, self._weights = {"model": model}, Snapshot()
        self.first = self.value = math.inf

    def start(self, loss: float) -> None:
        """Note where training starts from, without taking those weights for a candidate."""
        self.first = loss

    def offer(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise NumericsError(f"the validation loss is {loss}")
        if math.isinf(self.first):
            self.first = loss
        if loss < self.value:
            self.value = loss
            self._weights.take(self._model)

    def restore(self) -> None:
        """Put the best weights back into the model; the copy is given up."""
        self._weights.give_back(self._model)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self._weights.state_dict(), "first": self.first, "value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._weights.load_state_dict(state["weights"])
        self.first, self.value = state["first"], state["value"]

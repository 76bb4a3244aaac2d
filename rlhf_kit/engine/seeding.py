"""One seed for a run, an independent stream for each stage."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy
import torch


def derive_seed(seed: int, *names: str) -> int:
    """A 63-bit seed for a named stream: stages stay independent of each other's length."""
    digest = hashlib.sha256("/".join([str(seed), *names]).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seed_everything(seed: int) -> torch.Generator:
    """Seed the global generators (model initialisation, plugins) and return a fresh own one."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


class GeneratorState:
    """A stage's generator and torch's global one, as part of a checkpoint."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def state_dict(self) -> dict[str, Any]:
        return {"stage": self._generator.get_state(), "torch": torch.get_rng_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._generator.set_state(state["stage"])
        torch.set_rng_state(state["torch"])

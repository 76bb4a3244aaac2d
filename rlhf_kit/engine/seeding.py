"""One seed for a run, an independent stream for each stage."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
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
    """Every generator of random numbers as part of a checkpoint, as plain data and tensors.

    A stage's own, and the global ones of torch, python, numpy and each CUDA device, which models
    and plugins draw from. CUDA devices that only one of saving and loading machine has are left
    alone.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def state_dict(self) -> dict[str, Any]:
        # Asking a device that nothing has used yet would start CUDA for no reason.
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return {
            "stage": self._generator.get_state(),
            "torch": torch.get_rng_state(),
            "python": _python_state(),
            "numpy": _numpy_state(),
            "cuda": cuda,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._generator.set_state(state["stage"])
        torch.set_rng_state(state["torch"])
        python, array = state["python"], state["numpy"]
        random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
        words = array["words"].numpy().astype(numpy.uint32)
        numpy.random.set_state(
            ("MT19937", words, array["position"], array["has_gauss"], array["gauss"])
        )
        devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        for device, saved in enumerate(state["cuda"][:devices]):
            torch.cuda.set_rng_state(saved, device)


@contextmanager
def randomness_kept() -> Iterator[None]:
    """Inside, the global generators may be drawn from; afterwards they stand where they stood."""
    generators = GeneratorState(torch.Generator())
    state = generators.state_dict()
    try:
        yield
    finally:
        generators.load_state_dict(state)


def _python_state() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    return {"version": version, "words": torch.tensor(words), "gauss": gauss}


def _numpy_state() -> dict[str, Any]:
    # Always a Mersenne twister, unless a plugin has put another one in the global place.
    state: Any = numpy.random.get_state()
    _, words, position, has_gauss, gauss = state
    return {
        "words": torch.from_numpy(words.astype(numpy.int64)),  # torch lacks much of uint32
        "position": position,
        "has_gauss": has_gauss,
        "gauss": gauss,
    }

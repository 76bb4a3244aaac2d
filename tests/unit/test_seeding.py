"""Seeds, and the state of every generator in a checkpoint."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from rlhf_kit.engine.checkpoint import load_checkpoint, save_checkpoint
from rlhf_kit.engine.seeding import GeneratorState, derive_seed, seed_everything


def drawn(generator: torch.Generator) -> list[float]:
    """A few numbers of every kind; an odd number of normal ones, of which two are made at once."""
    return [
        *torch.rand(2, generator=generator).tolist(),
        *torch.rand(2).tolist(),
        *(random.gauss(0.0, 1.0) for _ in range(3)),
        random.random(),
        *numpy.random.normal(size=3).tolist(),
        float(numpy.random.random()),
    ]


def test_a_checkpoint_puts_every_generator_back(tmp_path: Path) -> None:
    generator = seed_everything(3)
    drawn(generator)
    save_checkpoint(tmp_path / "c.pt", 1, {"generators": GeneratorState(generator)})
    expected = drawn(generator)
    other = seed_everything(4)
    assert not set(drawn(other)) & set(expected)
    # load_checkpoint reads with weights_only=True: nothing but plain data and tensors passes.
    assert load_checkpoint(tmp_path / "c.pt", {"generators": GeneratorState(other)}) == 1
    assert drawn(other) == expected


def test_every_generator_is_seeded_and_streams_are_apart() -> None:
    first = drawn(seed_everything(derive_seed(0, "sft")))
    assert drawn(seed_everything(derive_seed(0, "sft"))) == first
    assert not set(drawn(seed_everything(derive_seed(0, "ppo")))) & set(first)
    assert derive_seed(0, "sft") != derive_seed(1, "sft")


class Devices:
    """Stands in for torch.cuda with some devices."""

    def __init__(self, count: int) -> None:
        self.states = [torch.full((16,), 10 + i, dtype=torch.uint8) for i in range(count)]

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(torch.cuda, "is_available", lambda: bool(self.states))
        patch.setattr(torch.cuda, "is_initialized", lambda: bool(self.states))
        patch.setattr(torch.cuda, "device_count", lambda: len(self.states))
        patch.setattr(torch.cuda, "get_rng_state_all", lambda: [s.clone() for s in self.states])
        patch.setattr(torch.cuda, "set_rng_state", self.set)

    def set(self, state: torch.Tensor, device: int) -> None:
        self.states[device] = state


@pytest.mark.parametrize(
    ("saved", "loaded", "expected"),
    [(2, 2, [10, 11]), (0, 2, [90, 91]), (2, 0, []), (2, 1, [10]), (1, 2, [10, 91])],
)
def test_cuda_devices_come_and_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: int, loaded: int, expected: list[int]
) -> None:
    with monkeypatch.context() as patch:
        Devices(saved).install(patch)
        state: dict[str, Any] = {"generators": GeneratorState(torch.Generator())}
        save_checkpoint(tmp_path / "c.pt", 1, state)
    devices = Devices(loaded)
    devices.states = [s + 80 for s in devices.states]
    with monkeypatch.context() as patch:
        devices.install(patch)
        load_checkpoint(tmp_path / "c.pt", {"generators": GeneratorState(torch.Generator())})
    assert [int(s[0]) for s in devices.states] == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_generator_of_a_real_device(tmp_path: Path) -> None:
    seed_everything(3)
    torch.rand(5, device="cuda")
    save_checkpoint(tmp_path / "c.pt", 1, {"generators": GeneratorState(torch.Generator())})
    expected = torch.rand(5, device="cuda")
    seed_everything(4)
    load_checkpoint(tmp_path / "c.pt", {"generators": GeneratorState(torch.Generator())})
    assert torch.equal(torch.rand(5, device="cuda"), expected)

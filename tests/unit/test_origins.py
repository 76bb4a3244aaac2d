"""What is known of a part goes with it, also where nothing can refer to it weakly."""

from __future__ import annotations

from pathlib import Path

from toy_runs import one_stage, run

from rlhf_kit.origins import ByIdentity, Kept

SLOTTED = """
import gc
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from rlhf_kit import Component, hookimpl
from rlhf_kit.interfaces import Observer


class Weights: ...


HELD = weakref.WeakSet()


@dataclass(slots=True)
class Slotted:
    options: Any
    weights: Any = None

    def __post_init__(self):
        self.weights = Weights()
        HELD.add(self.weights)

    def __call__(self, samples):
        return torch.tensor([float(len(text)) for text in samples.responses])


class Counting(Observer):
    def __init__(self, options, context):
        self._say = context.say

    def stage_started(self, stage, folder):
        self._say(f"held at the start: {len(HELD)}")

    def run_ended(self, folder, error):
        gc.collect()
        self._say(f"held at the end: {len(HELD)}")


@hookimpl
def rlhf_components():
    yield Component("reward", "slotted", "slotted:Slotted")
    yield Component("observer", "counting", "slotted:Counting")
"""


def test_a_part_with_slots_goes_when_its_stage_is_done(
    toy_model: Path, tmp_path: Path, capsys
) -> None:
    recipe = one_stage(tmp_path / "project", toy_model, steps=1)
    plugin = tmp_path / "slotted.py"
    plugin.write_text(SLOTTED)
    words = ("ppo.reward=slotted", "observers={held: {use: counting}}")
    run(recipe, tmp_path / "out", *words, plugins=(plugin,))
    said = capsys.readouterr()
    assert "held at the start: 1" in said.out + said.err
    assert "held at the end: 0" in said.out + said.err


class Slots:
    __slots__ = ()


def test_kept_until_it_is_dropped() -> None:
    known: ByIdentity[str] = ByIdentity()
    outer, inner, one, two = Kept(), Kept(), Slots(), Slots()
    with outer:
        known.add(one, "one")
        with inner:
            known.add(two, "two")
    inner.drop()
    assert known.get(one) == "one" and known.get(two) is None
    outer.drop()
    assert known.get(one) is None

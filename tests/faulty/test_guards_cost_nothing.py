"""What the guards cost, in bytecode: told by counting, since seconds depend on who else computes."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
from rlhf_kit_policy_gradient.ppo import PPOPtx

import rlhf_kit.conforming
import rlhf_kit.origins
from rlhf_kit.engine import foreign, guarded, outcome, remembering, terms
from rlhf_kit.recipe import open_recipe
from rlhf_kit.run import run_recipe
from rlhf_kit.testing import toy_recipe

GUARDS = {
    module.__file__
    for module in (
        foreign,
        guarded,
        outcome,
        remembering,
        terms,
        rlhf_kit.conforming,
        rlhf_kit.origins,
    )
}
STEPS = 4


class Counting:
    """Instructions of Python by the file that they stand in, from a step of PPO on."""

    def __init__(self) -> None:
        self.counts: Counter[bool] = Counter()
        self._own: dict[CodeType, bool] = {}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if event == "call":
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            self._own.setdefault(code, code.co_filename in GUARDS)
        elif event == "opcode":
            self.counts[self._own[code]] += 1
        return self


def test_after_the_first_call_guards_cost_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what Python does in a step of PPO on a model of two layers, which is as little as it gets.

    On a real model nearly all is in the tensors, and the share is smaller by orders of magnitude.
    """
    recipe = toy_recipe(tmp_path)
    steps: list[Counter[bool]] = []
    step = PPOPtx.step

    def counted(self: PPOPtx, run: Any, number: int) -> str:
        counting = Counting()
        sys.settrace(counting)
        try:
            return step(self, run, number)
        finally:
            sys.settrace(None)
            steps.append(counting.counts)

    monkeypatch.setattr(PPOPtx, "step", counted)
    copies: list[int] = []
    copied = foreign._copies

    def looked(value: Any, name: str) -> Any:
        copies.append(len(steps))
        return copied(value, name)

    monkeypatch.setattr(foreign, "_copies", looked)
    overrides = [
        f"ppo.steps={STEPS}",
        "ppo.normalize.rewards=whiten",
        "ppo.critic.normalizer=running",
    ]
    resolved, loaded, _ = open_recipe(recipe, overrides)
    run_recipe(resolved, loaded, out=tmp_path / "out", plain=True)
    assert len(steps) == STEPS
    assert set(copies) == {0}  # compared by content: in the first step alone, and before it
    first, *later = (counts[True] / counts.total() for counts in steps)
    assert first > 0
    assert max(later) < 0.01, (first, later)

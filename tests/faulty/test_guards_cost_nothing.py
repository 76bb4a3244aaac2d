"""What the guards cost in instructions: counted, since seconds depend on who else computes."""

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


def counted_steps(
    folder: Path, rows: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Counter[bool]], list[int]]:
    """Instructions of each step of a run, and in which of them something was compared by content.

    ``rows`` is the size of a rollout, and of the one minibatch and micro-batch that it is.
    """
    steps: list[Counter[bool]] = []
    step, copied = PPOPtx.step, foreign._copied_leaves
    copies: list[int] = []

    def counted(self: PPOPtx, run: Any, number: int) -> str:
        counting = Counting()
        sys.settrace(counting)
        try:
            return step(self, run, number)
        finally:
            sys.settrace(None)
            steps.append(counting.counts)

    def looked(value: Any, name: str) -> Any:
        copies.append(len(steps))
        return copied(value, name)

    with monkeypatch.context() as patch:
        patch.setattr(PPOPtx, "step", counted)
        patch.setattr(foreign, "_copied_leaves", looked)
        sizes = [f"ppo.{key}={rows}" for key in ("rollout_batch", "minibatch", "micro_batch")]
        normal = ["ppo.normalize.rewards=whiten", "ppo.critic.normalizer=running"]
        alone = ["ppo.ptx=null", "data={prompts: {use: prompts, path: prompts.jsonl}}"]
        overrides = [f"ppo.steps={STEPS}", *sizes, *normal, *alone]
        resolved, loaded, _ = open_recipe(toy_recipe(folder), overrides)
        run_recipe(resolved, loaded, out=folder / "out", plain=True)
    return steps, copies


def test_after_the_first_call_guards_cost_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They read version counters, types and shapes: as many instructions for every size of batch.

    The share is of what Python does in a step on a model of two layers, which is as little as it
    gets; next to what the tensors of a real one do it is nothing.
    """
    (small, copies), (large, _) = (
        counted_steps(tmp_path / str(rows), rows, monkeypatch) for rows in (2, 6)
    )
    assert len(small) == len(large) == STEPS
    assert set(copies) == {0}  # compared by content: in the first step alone, and before it
    guards = {counts[True] for counts in (*small[1:], *large[1:])}
    assert len(guards) == 1, guards
    assert guards.pop() < 0.05 * min(counts.total() for counts in small)

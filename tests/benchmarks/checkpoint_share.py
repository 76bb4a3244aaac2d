"""What a checkpoint every minute costs a run, as a share of its time.

Usage: python tests/benchmarks/checkpoint_share.py COUNT RECIPE [OVERRIDE...]

Runs the recipe in a temporary folder with a checkpoint after every step, until so many are saved.
Of each the seconds are taken: state, file, hash and record. A minute holds one of them.
`recipes/quickstart.yaml` shows SFT, which has the best weights so far in its checkpoint too, and
`recipes/bench.yaml` with `memory.trainable_layers=10` the PPO of the quickstart.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from rlhf_kit.engine.checkpoints import Checkpoints
from rlhf_kit.interfaces import Stateful
from rlhf_kit.recipe import open_recipe
from rlhf_kit.run import run_recipe


class _EnoughError(BaseException):
    """So many are saved; no `except Exception` is in its way."""


def measured(count: int, recipe: Path, overrides: list[str]) -> list[tuple[float, float, int]]:
    """Of each checkpoint the seconds, those of the processor, and its bytes."""
    found: list[tuple[float, float, int]] = []
    save = Checkpoints.save

    def timed(self: Checkpoints, done: int, state: Mapping[str, Stateful]) -> Path:
        begin, busy = time.perf_counter(), time.process_time()
        path = save(self, done, state)
        seconds, busy = time.perf_counter() - begin, time.process_time() - busy
        found.append((seconds, busy, path.stat().st_size))
        if len(found) == count:
            raise _EnoughError
        return path

    Checkpoints.save = timed  # type: ignore[method-assign]
    resolved, loaded, _ = open_recipe(recipe, ["checkpoint.steps=1", *overrides])
    folder = tempfile.TemporaryDirectory(prefix="rlhf_kit_share_")
    with folder as out, contextlib.suppress(_EnoughError):
        run_recipe(resolved, loaded, out=Path(out) / "run", plain=True)
    return found


if __name__ == "__main__":
    seconds, busy, sizes = zip(
        *measured(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]), strict=True
    )
    middle, worst = statistics.median(seconds), max(seconds)
    print(
        f"{len(seconds)} checkpoints of {max(sizes) / 2**20:.0f} MiB: {middle:.2f} s in the median "
        f"({statistics.median(busy):.2f} s of the processor), {worst:.2f} s at most; "
        f"one a minute is {middle / 60:.1%} of a run, {worst / 60:.1%} at most"
    )

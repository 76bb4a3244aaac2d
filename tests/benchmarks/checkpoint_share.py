"""What a checkpoint every minute costs a run, as a share of its time.

Usage: python tests/benchmarks/checkpoint_share.py RECIPE [OVERRIDE...]

Runs the recipe in a temporary folder with a checkpoint after every step, and takes the median of
the seconds that one takes: state, file, hash and record. Sixty seconds hold one of them.
"""

from __future__ import annotations

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


def measured(recipe: Path, overrides: list[str]) -> list[tuple[float, int]]:
    """Seconds and bytes of each checkpoint of a run, over all of its stages."""
    found: list[tuple[float, int]] = []
    save = Checkpoints.save

    def timed(self: Checkpoints, done: int, state: Mapping[str, Stateful]) -> Path:
        begin = time.perf_counter()
        path = save(self, done, state)
        found.append((time.perf_counter() - begin, path.stat().st_size))
        return path

    Checkpoints.save = timed  # type: ignore[method-assign]
    resolved, loaded, _ = open_recipe(recipe, ["checkpoint.steps=1", *overrides])
    with tempfile.TemporaryDirectory(prefix="rlhf_kit_share_") as folder:
        run_recipe(resolved, loaded, out=Path(folder) / "run", plain=True)
    return found


if __name__ == "__main__":
    saved = measured(Path(sys.argv[1]), sys.argv[2:])
    seconds = statistics.median(s for s, _ in saved)
    worst, size = max(s for s, _ in saved), max(b for _, b in saved) / 2**20
    print(
        f"{len(saved)} checkpoints of up to {size:.0f} MiB: {seconds:.2f} s in the median, "
        f"{worst:.2f} s at most; one a minute is {seconds / 60:.2%} of a run, or {worst / 60:.2%}"
    )

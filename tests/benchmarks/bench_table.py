"""Print one table from several runs of recipes/bench.yaml (`make bench`).

Usage: python tests/benchmarks/bench_table.py RUN_FOLDER...

Seconds per step and phase are medians without the first step, which warms caches up. The peak is
the largest resident set of the process; a first run on a machine converts the model, which shows.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

NEW_TOKENS = 32  # of every response, see the recipe
_PHASE = "seconds/"


def medians(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Phase -> seconds per step, and their total, from the rows of metrics.jsonl.

    Raises:
        SystemExit: too few steps, or a response that ended early: such figures compare with none.
    """
    if len(rows) < 2:
        raise SystemExit(f"{len(rows)} steps: at least two are needed, the first is dropped")
    for row in rows:
        if row["response_length"] != NEW_TOKENS:
            raise SystemExit(
                f"step {row['step']}: responses of {row['response_length']:.2f} tokens in the "
                f"mean, not {NEW_TOKENS}; a response has ended, and the figures compare with none"
            )
    kept = [{k: v for k, v in row.items() if k.startswith(_PHASE)} for row in rows[1:]]
    found = {
        key.removeprefix(_PHASE): statistics.median(row[key] for row in kept) for key in kept[0]
    }
    return found | {"step": statistics.median(sum(row.values()) for row in kept)}


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file, or the one value of a JSON file.

    Raises:
        SystemExit: it is missing or not whole: the run has not finished.
    """
    try:
        text = path.read_text()
        return list(map(json.loads, text.splitlines() if path.suffix == ".jsonl" else [text]))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not whole"
        raise SystemExit(f"{path}: {why}; give the folder of a run that has finished") from error


def table(runs: list[Path]) -> str:
    """A markdown table with a row per run, and what it ran on."""
    lines: list[str] = []
    for run in runs:
        seconds = medians(read(run / "metrics.jsonl"))
        peak = read(run / "summary.json")[0]["peak_rss_mib"]
        if not lines:
            phases = [f"{phase}, s" for phase in seconds]
            lines.append("| | " + " | ".join([*phases, "peak, MiB"]) + " |")
            lines.append("|---" * (len(phases) + 2) + "|")
        cells = [f"{value:.2f}" for value in seconds.values()] + [f"{peak:,.0f}"]
        lines.append(f"| {run.name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _machine(runs[-1])])


def _machine(run: Path) -> str:
    attempt = read(run / "manifest.json")[0]["attempts"][-1]
    libraries = attempt["libraries"]
    return (
        f"{attempt['platform']}, {attempt['threads']} threads, torch {libraries['torch']}, "
        f"transformers {libraries['transformers']}"
    )


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit("give the folders of the runs: bench_table.py RUN_FOLDER...")
    try:
        print(table([Path(folder) for folder in sys.argv[1:]]))
    except (KeyError, TypeError, IndexError) as error:
        raise SystemExit(
            f"not the folders of finished runs of recipes/bench.yaml: {error}"
        ) from error

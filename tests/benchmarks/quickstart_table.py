"""Print the README's table from the summaries of several quickstart runs (`make seeds`).

Usage: python tests/benchmarks/quickstart_table.py RUN_FOLDER...
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Summary = dict[str, Any]


def gain(summary: Summary) -> float:
    """Of the gold score, PPO over SFT."""
    scores = summary["gold_score"]
    return float(scores["ppo"] - scores["baseline"])


# What to show, how to read it from a summary, how to write it, and what it should be.
ROWS: tuple[tuple[str, Callable[[Summary], float], str, str], ...] = (
    ("gold score, SFT", lambda s: s["gold_score"]["baseline"], "{:.3f}", ""),
    ("gold score, PPO", lambda s: s["gold_score"]["ppo"], "{:.3f}", ""),
    (
        "gain",
        gain,
        "{:+.3f}",
        "at least 0.20",
    ),
    ("win rate, ties half", lambda s: s["win_rate"]["ppo"], "{:.1%}", "at least 65 %"),
    ("  its 95 % interval, low", lambda s: s["win_rate_ci"]["ppo"][0], "{:.1%}", ""),
    ("  its 95 % interval, high", lambda s: s["win_rate_ci"]["ppo"][1], "{:.1%}", ""),
    ("KL to SFT, nats", lambda s: s["kl"]["ppo"], "{:.2f}", "at most 12"),
    ("perplexity of held-out text, SFT", lambda s: s["perplexity"]["baseline"], "{:.2f}", ""),
    ("perplexity of held-out text, PPO", lambda s: s["perplexity"]["ppo"], "{:.2f}", ""),
    (
        "  change",
        lambda s: s["perplexity"]["ppo"] / s["perplexity"]["baseline"] - 1,
        "{:+.1%}",
        "at most +10 %",
    ),
    ("reward model, clear held-out pairs", lambda s: s["rm_pair_accuracy"], "{:.1%}", ">= 70 %"),
    ("response length, SFT, tokens", lambda s: s["response_length"]["baseline"], "{:.1f}", ""),
    ("response length, PPO, tokens", lambda s: s["response_length"]["ppo"], "{:.1f}", ""),
    ("minutes", lambda s: s["seconds"]["total"] / 60, "{:.1f}", "at most 15"),
    ("peak resident memory, GiB", lambda s: s["peak_rss_mib"] / 1024, "{:.2f}", "at most 3.2"),
)


def table(summaries: list[Summary]) -> str:
    """A markdown table with a column per run, and mean and standard deviation over the runs."""
    seeds = [f"seed {s['seed']}" for s in summaries]
    lines = ["| | " + " | ".join([*seeds, "mean ± sd", "wanted"]) + " |"]
    lines.append("|---" * (len(seeds) + 3) + "|")
    for name, read, form, wanted in ROWS:
        values = [read(summary) for summary in summaries]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        mean = f"{form.format(statistics.mean(values))} ± {form.format(spread).lstrip('+')}"
        cells = [form.format(value) for value in values]
        lines.append("| " + " | ".join([name.strip(), *cells, mean, wanted]) + " |")
    return "\n".join(lines)


def summary(run: Path) -> Summary:
    """Of a run that has finished. Raises SystemExit where there is none."""
    path = run / "summary.json"
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not whole"
        raise SystemExit(f"{path}: {why}; give the folder of a run that has finished") from error


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit("give the folders of the runs: quickstart_table.py RUN_FOLDER...")
    try:
        print(table([summary(Path(folder)) for folder in sys.argv[1:]]))
    except (KeyError, TypeError) as error:
        raise SystemExit(f"not the folders of finished runs of the quickstart: {error}") from error

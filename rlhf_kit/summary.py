"""summary.json and the closing table."""

from __future__ import annotations

from typing import Any

from rlhf_kit.recipe import Recipe
from rlhf_kit.stage_record import StageRecord


def summarise(
    recipe: Recipe, records: dict[str, StageRecord], total_seconds: float
) -> dict[str, Any]:
    """What each stage reported, merged, with times, memory and seed.

    A key that two stages report belongs to the later one; ``stages`` has them all.
    """
    summary: dict[str, Any] = {"name": recipe.name, "seed": recipe.seed}
    for record in records.values():
        summary |= record.summary
    summary["seconds"] = {id: round(r.seconds, 1) for id, r in records.items()}
    summary["seconds"]["total"] = round(total_seconds, 1)
    summary["peak_rss_mib"] = max(record.peak_rss_mib for record in records.values())
    summary["stages"] = {id: record.summary for id, record in records.items()}
    return summary


def closing_table(summary: dict[str, Any]) -> dict[str, str]:
    """The summary as rows for a person; what `stages` repeats is left out."""
    rows: dict[str, str] = {}
    for key, value in summary.items():
        if key not in ("name", "stages"):
            rows |= _rows(key, value)
    return rows


def _rows(key: str, value: Any) -> dict[str, str]:
    if isinstance(value, dict):
        rows: dict[str, str] = {}
        for inner, content in value.items():
            rows |= _rows(f"{key}.{inner}", content)
        return rows
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return {}  # a table of its own, for a report
    if isinstance(value, list):
        return {key: " to ".join(_shown(v) for v in value)}
    return {key: _shown(value)}


def _shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)

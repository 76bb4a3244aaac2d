"""What of its data a stage does not use."""

from __future__ import annotations

from typing import Any

from rlhf_kit.interfaces import StageRun


class LeftOut:
    """Collected while data is read, told when the stage runs, counted in its summary."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, int]] = {}

    def note(self, count: int, total: int, what: str, why: str) -> None:
        """``count`` of ``total`` ``what`` are left out; nothing is noted where none is."""
        if count:
            self._found[f"{what}: {why}"] = count, total

    def __or__(self, other: LeftOut) -> LeftOut:
        """Both together."""
        both = LeftOut()
        both._found = self._found | other._found
        return both

    def tell(self, run: StageRun) -> None:
        """One line each."""
        for reason, (count, total) in self._found.items():
            run.say(f"left out {count} of {total} {reason}")

    def summary(self) -> dict[str, Any]:
        """``left_out`` for a stage's summary: reason -> count; nothing where all was used."""
        counts = {reason: count for reason, (count, _) in self._found.items()}
        return {"left_out": counts} if counts else {}

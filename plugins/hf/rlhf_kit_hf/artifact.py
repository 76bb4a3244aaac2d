"""A note beside saved weights: which strategy wrote them, and with what shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf_kit.engine.checkpoint import write_json
from rlhf_kit.errors import RecipeError
from rlhf_kit_hf.note import NOTE, disagreement


def write_note(folder: Path, strategy: str, **details: Any) -> None:
    """Record which strategy wrote the folder and with what shape."""
    write_json(folder / NOTE, {"strategy": strategy, **details})


def check_note(folder: Path, strategy: str, **details: Any) -> None:
    """Refuse a folder that another strategy, or the same one shaped otherwise, has written."""
    why = disagreement(folder, strategy, details)
    if why is not None:
        raise RecipeError(why)

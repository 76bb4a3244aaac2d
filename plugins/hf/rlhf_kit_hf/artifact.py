"""A note beside saved weights: which strategy wrote them, and with what shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhf_kit.engine.checkpoint import write_json
from rlhf_kit.errors import RecipeError

NOTE = "memory.json"
BACKBONE = "backbone"  # the key of the frozen weights that the folder's weights were trained on


def write_note(folder: Path, strategy: str, **details: Any) -> None:
    """Record which strategy wrote the folder and with what shape."""
    write_json(folder / NOTE, {"strategy": strategy, **details})


def check_note(folder: Path, strategy: str, **details: Any) -> None:
    """Refuse a folder that another strategy, or the same one shaped otherwise, has written."""
    path = folder / NOTE
    if not path.is_file():
        raise RecipeError(f"{folder}: holds no trained weights ({NOTE} is missing)")
    found = json.loads(path.read_text())
    for key, value in {"strategy": strategy, **details}.items():
        if found.get(key) == value:
            continue
        if key == BACKBONE:
            raise RecipeError(
                f"{folder}: was trained on the backbone {found.get(key) or 'unknown'!r}, and here "
                f"is {value!r}; use the same model block, or train that stage again"
            )
        raise RecipeError(
            f"{folder}: was written with memory {key} {found.get(key)!r}, the recipe has "
            f"{value!r}; use the same memory block, or train that stage again"
        )

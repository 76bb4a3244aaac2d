"""Reading the note beside saved weights. Torch-free, so that `check` can ask it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_kit_hf.model_folder import json_object

NOTE = "memory.json"
BACKBONE = "backbone"  # the key of the frozen weights that the folder's weights were trained on


def disagreement(folder: Path, strategy: str, details: Mapping[str, Any]) -> str | None:
    """Why weights in ``folder`` cannot be loaded by a strategy of this shape; None: they can."""
    path = folder / NOTE
    if not path.is_file():
        return f"{folder}: holds no trained weights ({NOTE} is missing)"
    found = json_object(path)
    if isinstance(found, str):
        return f"{found}; train that stage again"
    for key, value in {"strategy": strategy, **details}.items():
        if found.get(key) == value:
            continue
        if key == BACKBONE:
            # Its last word is the hash; the others need the weights, and may not be known yet.
            if str(found.get(key)).split(" ")[-1] == str(value).split(" ")[-1]:
                continue
            return (
                f"{folder}: was trained on the backbone {found.get(key) or 'unknown'!r}, and here "
                f"is {value!r}; use the same model block, or train that stage again"
            )
        return (
            f"{folder}: was written with memory {key} {found.get(key)!r}, the recipe has "
            f"{value!r}; use the same memory block, or train that stage again"
        )
    return None

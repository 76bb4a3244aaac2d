"""Folders of other runs that a recipe starts from."""

from __future__ import annotations

import json
from pathlib import Path

from rlhf_kit.errors import RecipeError


def stage_folder(folder: Path, produces: str) -> Path:
    """The stage folder that ``folder`` is, or the last one in it, of an artifact ``produces``.

    A folder inside a finished stage's is taken for another artifact of the same kind, such as the
    weights before averaging in ``ppo/last``.

    Raises:
        RecipeError: no such folder, or nothing finished of that kind in it.
    """
    if not folder.is_dir():
        raise RecipeError(f"{folder}: no such folder")
    candidates = [folder / "stage.json", *sorted((folder / "stages").glob("*/stage.json"))]
    finished = []
    for path in candidates:
        if path.is_file():
            record = json.loads(path.read_text())
            if record.get("produces") == produces and record.get("finished"):
                finished.append(path)
    inside = folder.parent / "stage.json"
    if not finished and inside.is_file() and next(folder.glob("*.safetensors"), None):
        record = json.loads(inside.read_text())
        if record.get("produces") == produces and record.get("finished"):
            return folder
    if not finished:
        raise RecipeError(f"{folder}: holds no finished {produces}")
    return max(finished, key=lambda path: path.stat().st_mtime).parent

"""manifest.json: what a run was made of."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rlhf_kit import __version__
from rlhf_kit.plugins import LoadedPlugins
from rlhf_kit.recipe import Recipe
from rlhf_kit.run_folder import FORMAT
from rlhf_kit.stage_record import StageRecord

_LIBRARIES = ("torch", "transformers", "peft", "datasets", "tokenizers", "safetensors", "numpy")


def describe(
    recipe: Recipe,
    loaded: LoadedPlugins,
    records: dict[str, StageRecord],
    todo: Sequence[str],
    before: Mapping[str, Any],
) -> dict[str, Any]:
    """What the run is, and what each attempt at it was made with, as plain data.

    Args:
        recipe, loaded: as resolved.
        records: of all stages.
        todo: the stages that this attempt runs.
        before: the manifest as the last attempt left it; empty for the first.
    """
    attempts = list(before.get("attempts", []))
    this = {
        "attempt": len(attempts) + 1,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "stages": list(todo),
        "execution": {id: records[id].execution for id in todo},
        "rlhf_kit": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "plugins": {p.name: f"{p.package} {p.version}" for p in loaded.plugins},
        "git": _git(str(recipe.path.resolve().parent)),
    }
    return {
        "format": FORMAT,
        "run": before.get("run") or uuid.uuid4().hex[:12],
        "recipe": str(recipe.path),
        "fingerprints": {id: record.fingerprint for id, record in records.items()},
        "produces": {id: record.produces for id, record in records.items()},
        "attempts": [*attempts, this],
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(folder: str) -> dict[str, Any] | None:
    """Commit, and whether there are changes on top of it; None outside a repository."""
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", folder, *command], capture_output=True, text=True, timeout=10
            )
            for command in (("rev-parse", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode != 0:
        return None
    return {"commit": commit.stdout.strip(), "dirty": bool(changes.stdout.strip())}

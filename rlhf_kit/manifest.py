"""manifest.json: what a run was made of."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import time
from typing import Any

from rlhf_kit import __version__
from rlhf_kit.plugins import LoadedPlugins
from rlhf_kit.recipe import Recipe
from rlhf_kit.stage_record import StageRecord

_LIBRARIES = ("torch", "transformers", "peft", "datasets", "tokenizers", "safetensors", "numpy")


def describe(
    recipe: Recipe, loaded: LoadedPlugins, records: dict[str, StageRecord]
) -> dict[str, Any]:
    """Versions, plugins, stage fingerprints and the state of the code, as plain data."""
    return {
        "rlhf_kit": __version__,
        "recipe": str(recipe.path),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "plugins": {p.name: f"{p.package} {p.version}" for p in loaded.plugins},
        "git": _git(str(recipe.path.resolve().parent)),
        "fingerprints": {id: record.fingerprint for id, record in records.items()},
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

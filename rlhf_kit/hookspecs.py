"""Every hook of rlhf_kit. A plugin implements any of them with ``@rlhf_kit.hookimpl``.

Hooks discover and observe; tensors never pass through them on the way to a loss.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from rlhf_kit.components import Component

if TYPE_CHECKING:
    from rlhf_kit.errors import RlhfKitError
    from rlhf_kit.types import Rollout

GROUP = "rlhf_kit"  # the entry-point group, and pluggy's project name
hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec
def rlhf_components() -> Iterable[Component]:  # type: ignore[empty-body]
    """Return the components this plugin offers. Must not import torch."""


@hookspec
def rlhf_check_recipe(recipe: Any) -> Iterable[str | RlhfKitError]:  # type: ignore[empty-body]
    """Return what is wrong with a resolved recipe across its blocks. Must not import torch."""


@hookspec
def rlhf_run_started(folder: Path, recipe: Any) -> None:
    """A run begins (or goes on) in ``folder``."""


@hookspec
def rlhf_run_ended(folder: Path, error: BaseException | None) -> None:
    """A run ends; ``error`` is what stopped it, if anything did."""


@hookspec
def rlhf_stage_started(stage: str, folder: Path) -> None:
    """A stage begins (or goes on); finished stages are not announced."""


@hookspec
def rlhf_stage_ended(stage: str, folder: Path, summary: dict[str, Any]) -> None:
    """A stage has written its artifact and its summary."""


@hookspec
def rlhf_rollout_collected(stage: str, step: int, rollout: Rollout) -> None:
    """A PPO stage has sampled and scored one batch. Look, do not change."""


@hookspec
def rlhf_step_ended(stage: str, step: int, metrics: dict[str, float]) -> None:
    """One optimizer or PPO step is complete."""


@hookspec
def rlhf_checkpoint_saved(stage: str, step: int, path: Path) -> None:
    """A checkpoint of everything with state is on disk."""

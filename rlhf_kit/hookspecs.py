"""Every hook of rlhf_kit. A plugin implements any of them with ``@rlhf_kit.hookimpl``.

Hooks discover and check. Whoever watches a run is a component of its recipe, an observer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pluggy

from rlhf_kit.components import Component

if TYPE_CHECKING:
    from rlhf_kit.errors import RlhfKitError

GROUP = "rlhf_kit"  # the entry-point group, and pluggy's project name
hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec
def rlhf_components() -> Iterable[Component]:  # type: ignore[empty-body]
    """Return the components this plugin offers. Must not import torch."""


@hookspec
def rlhf_check_recipe(recipe: Any) -> Iterable[str | RlhfKitError]:  # type: ignore[empty-body]
    """Return what is wrong with a resolved recipe across its blocks. Must not import torch."""

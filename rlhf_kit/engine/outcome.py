"""What a stage says at its end."""

from __future__ import annotations

import json
from typing import Any

from rlhf_kit.engine.foreign import foreign
from rlhf_kit.engine.metrics import finite
from rlhf_kit.errors import PluginError
from rlhf_kit.interfaces import Stage, StageRun
from rlhf_kit.origins import Whose


def outcome(stage: Stage, run: StageRun) -> dict[str, Any]:
    """The summary of ``stage``, which JSON can hold.

    Raises:
        PluginError: it is something else, or the stage raised what is no error of ours.
    """
    who = Whose(stage, f"stage {run.id!r}")
    with foreign(who):
        found = stage.run(run)
    if not isinstance(found, dict):
        raise PluginError(
            f"{who} returned {type(found).__name__} from run; it should return a dict of figures "
            "for the summary"
        )
    try:
        summary: dict[str, Any] = finite(found)
        json.dumps(summary)
    except (TypeError, ValueError, RecursionError) as error:
        raise PluginError(f"{who} returned a summary that JSON cannot hold: {error}") from error
    return summary

"""Registration: what the entry point names. Imports neither torch nor the implementations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rlhf_kit import Component, hookimpl
from rlhf_kit_example import options


@hookimpl
def rlhf_components() -> Iterable[Component]:
    yield Component(
        "reward",
        "brevity",
        "rlhf_kit_example.brevity:Brevity",
        options.BrevityOptions,
        "Highest for responses of a target length in words, in [0, 1].",
    )
    yield Component(
        "policy_loss",
        "gspo",
        "rlhf_kit_example.gspo:GSPO",
        options.GSPOOptions,
        "Clipped ratio of whole responses, arXiv:2507.18071.",
    )
    yield Component(
        "advantage",
        "rloo",
        "rlhf_kit_example.rloo:RLOO",
        options.RLOOOptions,
        "Leave-one-out baseline over the responses to a prompt, arXiv:2402.14740.",
    )  # no needs={"values"}: PPO builds no critic for it


@hookimpl
def rlhf_check_recipe(recipe: Any) -> Iterable[str]:
    """Options that do not go together, found before any model is loaded."""
    for stage in recipe.stages.values():
        chosen = stage.part.options
        advantage = getattr(chosen, "advantage", None)
        if advantage is None or not isinstance(advantage.options, options.RLOOOptions):
            continue
        if getattr(chosen, "samples_per_prompt", 1) < 2:
            yield (
                f"{stage.part.where}: {stage.part.key}.samples_per_prompt: advantage rloo compares "
                "the responses to one prompt, so it needs at least 2"
            )

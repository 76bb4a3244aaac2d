"""Registration: what the entry point names. Imports neither torch nor the implementations."""

from __future__ import annotations

from collections.abc import Iterable

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
        # No "values": PPO builds no critic for it.
        needs=frozenset({"groups", "own_normalization"}),
    )

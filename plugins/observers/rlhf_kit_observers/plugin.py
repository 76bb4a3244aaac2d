"""Registration of the observers; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable

from rlhf_kit import Component, hookimpl
from rlhf_kit_observers import options


@hookimpl
def rlhf_components() -> Iterable[Component]:
    yield Component(
        "observer",
        "samples",
        "rlhf_kit_observers.samples:SamplesFile",
        options.SamplesOptions,
        "Writes a few prompts, responses and scores of one rollout in so many.",
    )

"""Registration of the engines; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable

from rlhf_kit import Component, hookimpl
from rlhf_kit_engines import options


@hookimpl
def rlhf_components() -> Iterable[Component]:
    yield Component(
        "engine",
        "single",
        "rlhf_kit_engines.single:Single",
        options.SingleOptions,
        "One process on one device.",
    )

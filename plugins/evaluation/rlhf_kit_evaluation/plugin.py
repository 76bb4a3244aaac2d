"""Registration of the evaluation stages; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable

from rlhf_kit import Component, hookimpl
from rlhf_kit_evaluation import options as o

_PACKAGE = "rlhf_kit_evaluation"


@hookimpl
def rlhf_components() -> Iterable[Component]:
    yield Component(
        "stage",
        "evaluate",
        f"{_PACKAGE}.evaluate:Evaluate",
        o.EvaluateOptions,
        "Policies against a baseline on held-out prompts: gold score, win rate, KL, perplexity.",
        produces="evaluation",
    )
    yield Component(
        "stage",
        "best_of_n",
        f"{_PACKAGE}.best_of_n:BestOfN",
        o.BestOfNOptions,
        "What proxy rewards pick among n samples, and its gold score.",
        produces="best_of_n",
    )

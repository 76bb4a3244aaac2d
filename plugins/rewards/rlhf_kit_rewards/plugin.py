"""Registration of the reward components; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable

from rlhf_kit import Component, hookimpl
from rlhf_kit_rewards import options


@hookimpl
def rlhf_components() -> Iterable[Component]:
    package = "rlhf_kit_rewards"
    yield Component(
        "reward",
        "python",
        f"{package}.python:PythonReward",
        options.PythonOptions,
        "Any Python function over prompts, responses and source rows.",
    )
    yield Component(
        "reward",
        "judge",
        f"{package}.judge:Judge",
        options.JudgeOptions,
        "A reward that calls out: time limit, retries, parallel calls, what to do without a score.",
    )
    yield Component(
        "reward",
        "vader",
        f"{package}.vader:Vader",
        options.VaderOptions,
        "VADER sentiment of the response, in [-1, 1].",
    )
    yield Component(
        "reward",
        "weighted_sum",
        f"{package}.weighted_sum:WeightedSum",
        options.WeightedSumOptions,
        "Several rewards with weights, each component logged.",
    )
    yield Component(
        "reward",
        "ensemble",
        f"{package}.ensemble:Ensemble",
        options.EnsembleOptions,
        "Several rewards of the same thing: mean, minimum, or mean less standard deviation.",
    )

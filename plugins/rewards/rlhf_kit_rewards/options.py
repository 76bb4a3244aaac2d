"""Options of the reward components. Torch-free."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field, model_validator

from rlhf_kit import Execution, ModuleName, Options, Part, RecipePath, slot, slots
from rlhf_kit.importable import parameters, why_no_attribute, why_no_import, why_no_name

OFFERED = ("prompts", "responses", "rows", "samples")
"""The parameters that a reward function may have."""


class PythonOptions(Options):
    """A Python function, from a file beside the recipe or from an installed module."""

    path: RecipePath | None = Field(None, description="a .py file, relative to the recipe")
    module: ModuleName | None = Field(None, description="an importable module")
    function: str = Field("reward", description="the function's name")

    @model_validator(mode="after")
    def _one_source(self) -> PythonOptions:
        if (self.path is None) == (self.module is None):
            raise ValueError("give exactly one of path and module")
        return self

    def problems(self) -> Mapping[str, str]:
        """What importing the function would say, as far as it is plain to see."""
        if self.module is not None:
            why = why_no_attribute(self.module, self.function)
            return {"module": f"cannot import {self.module}:{self.function}: {why}"} if why else {}
        assert self.path is not None
        name = f"{self.path}:{self.function}"
        why = why_no_import(self.path) or why_no_name(self.path, self.function)
        if why is not None:
            return {"path": f"cannot import {name}: {why}"}
        others = unoffered(parameters(self.path, self.function))
        return {"path": f"{name} {others}"} if others else {}


def unoffered(found: Sequence[tuple[str, bool]] | None) -> str | None:
    """What is wrong with the parameters of a reward function, (name, must be given) each."""
    names = [name for name, _ in found or ()]
    strange = [name for name, required in found or () if required and name not in OFFERED]
    if found is None or (not strange and set(names) & set(OFFERED)):
        return None
    return f"has parameters ({', '.join(names)}); it may have any of {', '.join(OFFERED)}"


class VaderOptions(Options):
    """VADER sentiment (Hutto and Gilbert 2014)."""

    part: Literal["compound", "pos", "neg", "neu"] = Field(
        "compound", description="which of VADER's scores; compound lies in [-1, 1]"
    )

    def problems(self) -> Mapping[str, str]:
        if importlib.util.find_spec("vaderSentiment") is None:
            return {"use": "needs the package vaderSentiment; pip install vaderSentiment"}
        return {}


class JudgeOptions(Options):
    """A reward that calls out, such as a language model over HTTP, called for each response."""

    reward: Part = slot("reward", description="what is called, with one response at a time")
    timeout: Execution[float] = Field(
        60.0, gt=0, le=86400, description="seconds to wait for a call; then it has failed"
    )
    retries: Execution[int] = Field(
        3, ge=0, le=1000, description="how often a call that failed is made again"
    )
    backoff: Execution[float] = Field(
        1.0,
        ge=0,
        le=60,
        description="seconds before the first retry; twice as many before each that follows, up to "
        "a minute",
    )
    parallel: Execution[int] = Field(8, ge=1, le=1024, description="calls at a time")
    on_error: Literal["stop", "drop", "value"] = Field(
        "stop",
        description="a response without a score, all retries made: stop the run; drop it, so that "
        "nothing is learned or averaged from it; or give it error_value",
    )
    error_value: float | None = Field(
        None, description="the score of a response that has none, under on_error: value"
    )
    most_in_a_row: Execution[int] = Field(
        16,
        ge=1,
        description="so many responses in a row without a score stop the run all the same: the "
        "judge is down",
    )

    def effect(self, name: str) -> str:
        # With them which responses are given up changes, unless the first one stops the run.
        if self.on_error != "stop" and name in ("timeout", "retries", "backoff", "parallel"):
            return "identity"
        return super().effect(name)

    def idle(self) -> Mapping[str, str]:
        unread: dict[str, str] = {}
        if self.on_error != "value":
            unread["error_value"] = f'on_error is "{self.on_error}"; set on_error: value'
        if self.on_error == "stop":
            unread["most_in_a_row"] = 'on_error is "stop": the first one stops the run'
        if self.retries == 0:
            unread["backoff"] = "retries is 0; set it to 1 or more"
        return unread

    def problems(self) -> Mapping[str, str]:
        if self.on_error == "value" and self.error_value is None:
            return {"error_value": "is missing; on_error: value needs the score to give"}
        return {}


class WeightedSumOptions(Options):
    """Several rewards, each with a weight; every component is logged."""

    rewards: dict[str, Part] = slots("reward", description="the rewards, by a name of your own")
    weights: dict[str, float] = Field(
        default_factory=dict, description="weight of each reward; 1 for those not named"
    )

    @model_validator(mode="after")
    def _weights_name_rewards(self) -> WeightedSumOptions:
        unknown = sorted(set(self.weights) - set(self.rewards))
        if unknown:
            raise ValueError(f"weights name no reward: {', '.join(unknown)}")
        return self


class EnsembleOptions(Options):
    """Several rewards of the same thing, combined with care; every member is logged."""

    rewards: dict[str, Part] = slots("reward", description="the members, by a name of your own")
    combine: Literal["mean", "min", "mean_minus_std"] = Field(
        "mean",
        description="mean of the members; min: the lowest, worst-case optimisation; "
        "mean_minus_std: the mean less std_coef standard deviations, much like "
        "uncertainty-weighted optimisation (arXiv:2310.02743), which subtracts the variance",
    )
    std_coef: float = Field(
        1.0,
        ge=0,
        description="standard deviations over the members (dividing by their number) to subtract",
    )

    def idle(self) -> Mapping[str, str]:
        if self.combine == "mean_minus_std":
            return {}
        return {"std_coef": f'combine is "{self.combine}"; set combine: mean_minus_std'}

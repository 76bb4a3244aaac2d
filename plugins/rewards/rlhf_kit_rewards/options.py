"""Options of the reward components. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlhf_kit import Options, Part, RecipePath, slots


class PythonOptions(Options):
    """A Python function, from a file beside the recipe or from an installed module."""

    path: RecipePath | None = Field(None, description="a .py file, relative to the recipe")
    module: str | None = Field(None, description="an importable module")
    function: str = Field("reward", description="the function's name")

    @model_validator(mode="after")
    def _one_source(self) -> PythonOptions:
        if (self.path is None) == (self.module is None):
            raise ValueError("give exactly one of path and module")
        return self


class VaderOptions(Options):
    """VADER sentiment (Hutto and Gilbert 2014)."""

    part: Literal["compound", "pos", "neg", "neu"] = Field(
        "compound", description="which of VADER's scores; compound lies in [-1, 1]"
    )


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

"""Options of the reward components. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from rlhf_kit import ModuleName, Options, Part, RecipePath, slots


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

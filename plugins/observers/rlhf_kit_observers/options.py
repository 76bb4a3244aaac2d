"""Options of the observers. Torch-free."""

from __future__ import annotations

from pydantic import Field

from rlhf_kit import Observation, Options


class SamplesOptions(Options):
    """A few samples of some rollouts."""

    every: Observation[int] = Field(
        5, ge=1, description="of how many rollouts one is written; the first of a stage is"
    )
    count: Observation[int] = Field(8, ge=1, description="how many samples of it")

"""How responses are drawn from a policy."""

from __future__ import annotations

from typing import Protocol

from rlhf_kit.interfaces.policy import Policy
from rlhf_kit.types import Prompts, Samples, Sampling


class Sampler(Protocol):
    def __call__(self, policy: Policy, prompts: Prompts, sampling: Sampling) -> Samples:
        """One response per prompt, over with the first end-of-sequence token in it.

        Tokens, the log-probabilities that they were drawn with and, where it comes for free, the
        trunk. A row is drawn with the numbers of its own stream (see ``Sampling``), so that its
        text is the same whatever the batch, up to rounding.

        Raises:
            RecipeError: it cannot sample this policy.
        """

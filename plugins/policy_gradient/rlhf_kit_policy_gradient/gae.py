"""The advantage estimator of InstructGPT."""

from __future__ import annotations

from rlhf_kit.ops.returns import gae
from rlhf_kit.types import Advantages, Experience
from rlhf_kit_policy_gradient.options import GAEOptions


class GAE:
    """Generalized advantage estimation, arXiv:1506.02438."""

    def __init__(self, options: GAEOptions) -> None:
        self._options = options

    def __call__(self, experience: Experience) -> Advantages:
        assert experience.values is not None
        advantages, returns = gae(
            experience.rewards,
            experience.values,
            experience.places,
            discount=self._options.discount,
            lam=self._options.lam,
        )
        return Advantages(advantages, returns)

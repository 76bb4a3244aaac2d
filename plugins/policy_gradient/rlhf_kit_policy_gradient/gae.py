"""The advantage estimator of InstructGPT."""

from __future__ import annotations

from torch import Tensor

from rlhf_kit.ops.returns import gae
from rlhf_kit.types import Advantages
from rlhf_kit_policy_gradient.options import GAEOptions


class GAE:
    """Generalized advantage estimation, arXiv:1506.02438."""

    def __init__(self, options: GAEOptions) -> None:
        self._options = options

    def __call__(
        self, rewards: Tensor, values: Tensor | None, mask: Tensor, group: Tensor
    ) -> Advantages:
        assert values is not None
        o = self._options
        advantages, returns = gae(rewards, values, mask, discount=o.discount, lam=o.lam)
        return Advantages(advantages, returns)

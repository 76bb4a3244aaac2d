"""What turns PPO's coefficients from rollout to rollout, and what ends or takes back a training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from rlhf_kit.engine.foreign import foreign
from rlhf_kit.engine.remembering import remembering
from rlhf_kit.engine.world import world_mean
from rlhf_kit.errors import NumericsError, PluginError
from rlhf_kit.interfaces import KLController, Policy, PtxController, Stateful, World
from rlhf_kit.ops.kl import sequence_kl
from rlhf_kit.origins import Whose
from rlhf_kit.stagekit.perplexity import perplexity
from rlhf_kit.types import Rollout, Texts
from rlhf_kit_policy_gradient.control import KLLimit, Verdict


class Beta:
    """The KL coefficient, its controller, and the bound on the KL.

    Args:
        coefficient: to begin with.
        controller: what becomes of it.
        limit: the bound.
        world: over which the KL is averaged, so that every process comes to the same verdict.
    """

    def __init__(
        self, coefficient: float, controller: KLController, limit: KLLimit, world: World
    ) -> None:
        self.coefficient, self.limit = coefficient, limit
        self._controller, self._world = controller, world

    def judge(self, rollout: Rollout, learned: Mapping[str, Stateful]) -> Verdict:
        """Before a rollout is learned from: whether it may be. ``learned`` may be taken back."""
        return self.limit.check(self._kl(rollout), learned)

    def settle(
        self, verdict: Verdict, rollout: Rollout, learned: Mapping[str, Stateful]
    ) -> dict[str, float]:
        """After it: take ``learned`` back where it went too far, or let the controller see the KL.

        The coefficient among the figures is the one that this rollout was judged with.

        Raises:
            NumericsError: the coefficient is 0: the same rollout would come back for ever.
        """
        figures = {"kl_coef": self.coefficient}
        if verdict == "rollback":
            if self.coefficient == 0:
                raise NumericsError(
                    "kl.limit: the KL is over its bound and the coefficient is 0, which no factor "
                    "raises; start from a larger kl.coef, or set kl.on_limit: stop"
                )
            self.coefficient = self.limit.take_back(self.coefficient, learned)
        figures["rollbacks"] = float(self.limit.rollbacks)
        if verdict == "go on":
            rows = int(self._world.sum(torch.tensor(len(rollout.samples))))
            who = Whose(self._controller, "kl.controller")
            with foreign(who), remembering(self._controller, who):
                found = self._controller(self.coefficient, self._kl(rollout), rows)
            self.coefficient = _coefficient(found, who)
        return figures

    def _kl(self, rollout: Rollout) -> float:
        """The mean over responses of the summed log-ratio to the reference, in nats."""
        kl = sequence_kl(rollout.logprobs, rollout.reference_logprobs, rollout.mask)
        return world_mean(self._world, kl)

    def state_dict(self) -> dict[str, Any]:
        return {
            "coefficient": self.coefficient,
            "controller": _state(self._controller),
            "limit": self.limit.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.coefficient = state["coefficient"]
        self.limit.load_state_dict(state["limit"])
        if isinstance(self._controller, Stateful):
            self._controller.load_state_dict(state["controller"])


class Gamma:
    """The pretraining coefficient and its controller.

    Args:
        coefficient: to begin with.
        controller: what becomes of it.
        held_out: text on which it watches the perplexity; None where it never asks.
    """

    def __init__(
        self, coefficient: float, controller: PtxController, held_out: Texts | None = None
    ) -> None:
        self.coefficient = coefficient
        self._controller, self._held_out = controller, held_out

    def watch(self, step: int, policy: Policy) -> dict[str, float]:
        """Before a rollout: the controller sees the held-out perplexity when it is due."""
        figures: dict[str, float] = {}
        if self._held_out is not None and step % self._controller.every == 0:
            figures["held_out_perplexity"] = perplexity(policy, self._held_out)
            who = Whose(self._controller, "ptx.controller")
            with foreign(who), remembering(self._controller, who):
                found = self._controller(self.coefficient, figures["held_out_perplexity"])
            self.coefficient = _coefficient(found, who)
        return figures | {"ptx_coef": self.coefficient}

    def state_dict(self) -> dict[str, Any]:
        return {"coefficient": self.coefficient, "controller": _state(self._controller)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.coefficient = state["coefficient"]
        if isinstance(self._controller, Stateful):
            self._controller.load_state_dict(state["controller"])


def _state(part: KLController | PtxController) -> dict[str, Any]:
    return part.state_dict() if isinstance(part, Stateful) else {}


def _coefficient(found: object, who: object) -> float:
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found < math.inf:
        raise PluginError(f"{who} returned {found!r}; it should return a number, 0 or more")
    return float(found)
